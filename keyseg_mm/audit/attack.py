"""Old address of :mod:`keyseg_mm.audit.engine.attack`, for the attacks until they have moved."""

from keyseg_mm.audit.engine.attack import Attack, Attempt, Progress, register

__all__ = ['Attack', 'Attempt', 'Progress', 'register']
