"""Proofs of locks on the host's bench."""

from __future__ import annotations

from keyseg_mm.locking import SCHEMES
from keyseg_mm.mm.bench import HostBench

BENCH = HostBench(64)  # half of the side that commands take: a quarter of the time


def prove(model, weights, plan, key, salt):
    """The proof of a plan by its own scheme; see :meth:`keyseg_mm.locking.scheme.Scheme.prove`."""
    return SCHEMES[plan.scheme].prove(BENCH, model, weights, plan, key, salt)
