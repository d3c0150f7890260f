"""Old address of :mod:`keyseg_mm.audit.images.attack`, for the attacks until they have moved."""

from keyseg_mm.audit.images.attack import Restored, Restoring, register

__all__ = ['Restored', 'Restoring', 'register']
