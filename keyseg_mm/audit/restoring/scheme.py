"""Old address of :mod:`keyseg_mm.audit.images.scheme`, for the attacks until they have moved."""

from keyseg_mm.audit.images.scheme import BYTES, COLOURS, BlockMap, Blocks, Images, Scheme, cut, join

__all__ = ['BYTES', 'BlockMap', 'Blocks', 'COLOURS', 'Images', 'Scheme', 'cut', 'join']
