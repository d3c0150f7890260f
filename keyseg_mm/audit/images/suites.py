"""How thorough an audit of encrypted images is: the suites that a user picks from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Depth:
    """How thorough a suite is.

    Attributes:
        steps: optimisation steps of a learning attack.
        seconds: of each attack.
        images: under attack, at most; None for all that there are.
        photos: the attacker's own, likewise.
        longest: longer side of all of them, at most; larger ones are scaled down.
        pairs: how many known pairs an attacker has, in the situations in which he has any.
    """

    steps: int
    seconds: float
    images: int | None
    photos: int | None
    longest: int | None
    pairs: tuple[int, ...]


DEPTHS = {
    'quick': Depth(150, 30.0, 16, 32, 192, (1, 16)),
    'standard': Depth(2000, 400.0, 40, 200, 512, (1, 64)),
    'full': Depth(10000, 3600.0, 60, 200, None, (1, 64)),
}
