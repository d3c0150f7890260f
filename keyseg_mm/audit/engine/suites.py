"""How thorough an audit is: the suites that a user picks from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from keyseg_mm.audit.engine.budget import Budget

#: Told what is going on, a line at a time.
Say = Callable[[str], None]


@dataclass(frozen=True)
class Suite:
    """How thorough a suite is."""

    steps: int  # optimisation steps of a run
    seconds: float  # of a run
    scored: int | None  # photos that are scored on, or images under attack, at most; None for all there are
    photos: int | None  # the attacker's own, at most
    longest: int | None  # longer side of all of them, at most; larger ones are scaled down

    def budget(self) -> Budget:
        """What each run may spend."""
        return Budget(self.steps, self.seconds)


@dataclass(frozen=True)
class ModelSuite(Suite):
    """Of an audit of a model."""

    shares: tuple[float, ...] = (0.01, 0.1)  # of the training photos that attackers have
    total: float | None = None  # seconds of all runs together, aimed at by giving each less; None for no aim


SUITES = {
    'quick': ModelSuite(60, 12.0, 16, 32, 384, (0.1,), 200.0),
    'standard': ModelSuite(400, 300.0, 60, 256, 768, (0.01, 0.1)),
    'full': ModelSuite(2000, 3600.0, None, None, None, (0.01, 0.05, 0.1)),
}
IMAGE_SUITES = {
    'quick': Suite(150, 30.0, 16, 32, 192),
    'standard': Suite(2000, 400.0, 40, 200, 512),
    'full': Suite(10000, 3600.0, 60, 200, None),
}
