"""Old address of :mod:`keyseg_mm.audit.engine.targets`, for the attacks until they have moved."""

from keyseg_mm.audit.engine.targets import ALL, BLOCKS, IMAGES, MAPS, WEIGHTS

__all__ = ['ALL', 'BLOCKS', 'IMAGES', 'MAPS', 'WEIGHTS']
