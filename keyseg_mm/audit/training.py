"""Old address of :mod:`keyseg_mm.audit.model.training`, for the attacks until they have moved."""

from keyseg_mm.audit.model.training import Course, train

__all__ = ['Course', 'train']
