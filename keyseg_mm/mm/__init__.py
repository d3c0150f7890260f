"""All that knows OpenMMLab: builders, neck, guard hook, pipeline step, dry run, and the mends for both stacks."""

from keyseg_mm.mm.bench import HostBench
from keyseg_mm.mm.compat import name_distributions
from keyseg_mm.mm.doors import set_up
from keyseg_mm.mm.hooks import GuardHook
from keyseg_mm.mm.keyed import Keyed
from keyseg_mm.mm.neck import KeyedNeck
from keyseg_mm.mm.pipeline import EncryptImage
from keyseg_mm.mm.sources import forget, from_bytes
from keyseg_mm.mm.sources import set_up as set_up_sources

__all__ = ['EncryptImage', 'GuardHook', 'HostBench', 'Keyed', 'KeyedNeck', 'forget', 'from_bytes', 'name_distributions']

name_distributions()
set_up()
set_up_sources()
