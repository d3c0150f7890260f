"""What a run may spend, how it tells where it stands, and the seeds of all that it draws."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

#: Called with the share done, 0 to 1, and a few words on where the attack stands.
Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class Budget:
    """What an attack may spend: optimisation steps (or queries, or tries) and seconds of wall time."""

    steps: int
    seconds: float

    def clock(self) -> Clock:
        """A clock that starts now."""
        return Clock(self)


class Clock:
    """Counts an attack's steps and seconds against its budget.

    Attributes:
        steps: steps taken.
    """

    def __init__(self, budget: Budget) -> None:
        self.budget, self.steps, self._start = budget, 0, time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._start

    @property
    def share(self) -> float:
        """How much of the budget is gone, 0 to 1, by whichever of steps and seconds is further."""
        return min(1.0, max(self.steps / max(self.budget.steps, 1), self.seconds / max(self.budget.seconds, 1e-9)))

    @property
    def out_of_time(self) -> bool:
        """The seconds are used up."""
        return self.seconds >= self.budget.seconds

    def tick(self, steps: int = 1) -> bool:
        """Take steps; False, with nothing taken, if the budget has none left."""
        if self.steps + steps > self.budget.steps or self.out_of_time:
            return False
        self.steps += steps
        return True


def seed_everything(seed: int) -> None:
    """Seed the generators of torch, numpy and Python: an attack may draw from any of them."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)
