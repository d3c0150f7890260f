"""How thorough an audit is: the suites that a user picks from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

#: Told what is going on, a line at a time.
Say = Callable[[str], None]


@dataclass(frozen=True)
class Level:
    """How thorough a suite is.

    Attributes:
        steps: optimisation steps of a run.
        seconds: of a run. Where ``total`` is given, less if there are many runs.
        total: seconds of all runs together, aimed at; None for no aim.
        shares: of the training photos.
        key_shares: of the key, leaked.
        held_out: photos that are scored on, at most.
        photos: labelled photos in a case, at most.
        longest: longer side of the photos, at most.
    """

    steps: int
    seconds: float
    total: float | None
    shares: tuple[float, ...]
    key_shares: tuple[float, ...]
    held_out: int | None
    photos: int | None
    longest: int | None


SUITES = {
    'quick': Level(60, 12.0, 200.0, (0.1,), (0.5, 0.9), 16, 32, 384),
    'standard': Level(400, 300.0, None, (0.01, 0.1), (0.25, 0.5, 0.75, 0.9), 60, 256, 768),
    'full': Level(2000, 3600.0, None, (0.01, 0.05, 0.1), (0.1, 0.25, 0.5, 0.75, 0.9, 0.95), None, None, None),
}
