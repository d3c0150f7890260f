"""Where mmengine looks for the scope ``keyseg_mm``: it imports ``<scope>.registry`` for ``type='<scope>.NAME'``."""

import keyseg_mm.baselines  # noqa: F401 - configs may name what it registers
from keyseg_mm.mm.registry import HOOKS, MODELS, TRANSFORMS

__all__ = ['HOOKS', 'MODELS', 'TRANSFORMS']
