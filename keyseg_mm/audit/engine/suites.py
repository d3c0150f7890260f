"""How thorough an audit is: the suites that a user picks from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from keyseg_mm.audit.engine.budget import Budget

#: Told what is going on, a line at a time.
Say = Callable[[str], None]


@dataclass(frozen=True)
class Suite:
    """How thorough a suite is.

    Attributes:
        steps: optimisation steps of a run.
        seconds: of a run.
        scored: photos that are scored on, at most; images under attack in an audit of images. None for all there are.
        photos: the attacker's own, at most.
        longest: longer side of all of them, at most; larger ones are scaled down.
    """

    steps: int
    seconds: float
    scored: int | None
    photos: int | None
    longest: int | None

    def budget(self) -> Budget:
        """What each run may spend."""
        return Budget(self.steps, self.seconds)


@dataclass(frozen=True)
class ModelSuite(Suite):
    """Of an audit of a model.

    Attributes:
        shares: of the training photos that attackers have.
        key_shares: of the key, leaked.
        total: seconds of all runs together, aimed at by giving each less if there are many; None for no aim.
    """

    shares: tuple[float, ...] = (0.01, 0.1)
    key_shares: tuple[float, ...] = ()
    total: float | None = None


@dataclass(frozen=True)
class ImageSuite(Suite):
    """Of an audit of encrypted images.

    Attributes:
        pairs: how many known pairs an attacker has, in the scenarios in which they have any.
    """

    pairs: tuple[int, ...] = (1, 16)


SUITES = {
    'quick': ModelSuite(60, 12.0, 16, 32, 384, (0.1,), (0.5, 0.9), 200.0),
    'standard': ModelSuite(400, 300.0, 60, 256, 768, (0.01, 0.1), (0.25, 0.5, 0.75, 0.9)),
    'full': ModelSuite(2000, 3600.0, None, None, None, (0.01, 0.05, 0.1), (0.1, 0.25, 0.5, 0.75, 0.9, 0.95)),
}
IMAGE_SUITES = {
    'quick': ImageSuite(150, 30.0, 16, 32, 192, (1, 16)),
    'standard': ImageSuite(2000, 400.0, 40, 200, 512, (1, 64)),
    'full': ImageSuite(10000, 3600.0, 60, 200, None, (1, 64)),
}
