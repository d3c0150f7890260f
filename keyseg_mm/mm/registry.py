"""This package's scope in mmengine's registries; importing ``keyseg_mm.registry`` is how mmengine finds it."""

from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import TRANSFORMS as MMENGINE_TRANSFORMS
from mmengine.registry import Registry

_LOCATIONS = ['keyseg_mm.registry']

MODELS = Registry('model', parent=MMENGINE_MODELS, scope='keyseg_mm', locations=_LOCATIONS)
HOOKS = Registry('hook', parent=MMENGINE_HOOKS, scope='keyseg_mm', locations=_LOCATIONS)
TRANSFORMS = Registry('transform', parent=MMENGINE_TRANSFORMS, scope='keyseg_mm', locations=_LOCATIONS)
