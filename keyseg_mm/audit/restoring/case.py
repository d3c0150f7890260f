"""Old address of :mod:`keyseg_mm.audit.images.case`, for the attacks until they have moved."""

from keyseg_mm.audit.images.case import ImageCase

__all__ = ['ImageCase']
