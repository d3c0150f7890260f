"""Old address of :mod:`keyseg_mm.audit.model.case`, for the attacks until they have moved."""

from keyseg_mm.audit.model.case import Budget, Case, Clock, GuessHook, MatrixMap, Photos, load_weights, logits

__all__ = ['Budget', 'Case', 'Clock', 'GuessHook', 'MatrixMap', 'Photos', 'load_weights', 'logits']
