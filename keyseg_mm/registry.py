"""Where mmengine looks for the scope ``keyseg_mm``: it imports ``<scope>.registry`` for ``type='<scope>.NAME'``."""

from keyseg_mm.mm.registry import HOOKS, MODELS, TRANSFORMS

__all__ = ['HOOKS', 'MODELS', 'TRANSFORMS']
