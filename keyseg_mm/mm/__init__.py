"""All that knows OpenMMLab: builders, neck, image transform, hooks, and the mends for both mmseg stacks."""

from keyseg_mm.mm.compat import allow_history_buffer, name_distributions
from keyseg_mm.mm.guard import KeyGuardHook
from keyseg_mm.mm.images import EncryptImage, ImageKeyHook
from keyseg_mm.mm.keyed import Keyed
from keyseg_mm.mm.neck import KeyedNeck

__all__ = [
    'EncryptImage',
    'ImageKeyHook',
    'KeyGuardHook',
    'Keyed',
    'KeyedNeck',
    'allow_history_buffer',
    'name_distributions',
]

allow_history_buffer()
name_distributions()
