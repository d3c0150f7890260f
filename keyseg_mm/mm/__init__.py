"""All that knows OpenMMLab: builders, neck, hooks, image transforms, and the mends for both mmseg stacks."""

from keyseg_mm.mm.compat import allow_history_buffer, name_distributions
from keyseg_mm.mm.hooks import KeyGuardHook
from keyseg_mm.mm.keyed import Keyed
from keyseg_mm.mm.neck import KeyedNeck
from keyseg_mm.mm.patchdata import EncryptPatches
from keyseg_mm.mm.patchguard import PatchGuardHook
from keyseg_mm.mm.pipeline import EncryptImage, ImageKeyHook

__all__ = [
    'EncryptImage',
    'EncryptPatches',
    'ImageKeyHook',
    'KeyGuardHook',
    'Keyed',
    'KeyedNeck',
    'PatchGuardHook',
    'allow_history_buffer',
    'name_distributions',
]

allow_history_buffer()
name_distributions()
