"""Proofs of a lock, before it is written: with the key the model is the plain one, and without it is not.

How a model is run is the host's matter: it is handed in as a :class:`Bench`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from keyseg_mm.entries import MapEntry
from keyseg_mm.locking.plan import Plan
from keyseg_mm.maps import Map
from keyseg_mm.maps.pixels import BlockCipher
from keyseg_mm.model.sites import Site

# Sums are reordered, which costs a few units in the last place; a wrong absorption is wrong by its own size.
LIMIT = 1e-3
LOSS_LIMIT = 1e-2  # batch norm over the few values of a small training pass magnifies rounding
NOTHING = 1e-3  # a change below it protects nothing
WEAK = 0.2  # kappa above it: what is encrypted barely changes the output
WEAK_ERROR = 0.1  # the same, where there are no classes to compare

Outputs = dict[str, Tensor]


@dataclass(frozen=True)
class Agreement:
    """How far two models agree.

    Attributes:
        error: largest relative error (of norms) of an output of the test pass.
        loss_error: largest relative error of a loss of the training pass.
        same: share of pixels of the same class; NaN where no classes are predicted.
        kappa: Cohen's kappa of the two predictions (Cohen 1960): 1 the same, 0 no more than by chance; NaN where it is
            not defined.
    """

    error: float
    loss_error: float
    same: float
    kappa: float

    @property
    def is_equal(self) -> bool:
        """Whether they are the same model, up to rounding."""
        return self.error <= LIMIT and self.loss_error <= LOSS_LIMIT

    @property
    def is_the_same(self) -> bool:
        """Whether nothing would be protected by a change of this size."""
        return self.error <= NOTHING

    @property
    def is_close(self) -> bool:
        """Whether the output barely differs."""
        return self.error < WEAK_ERROR if math.isnan(self.kappa) else self.kappa > WEAK


#: A model that does not even run, against one that does.
BROKEN = Agreement(math.inf, math.inf, math.nan, math.nan)


@dataclass(frozen=True)
class Proof:
    """What a proof found.

    Attributes:
        plan: what was proved: less than was planned, where points of a preset turned out to be wrong.
        with_key: the locked model as its owner runs it, against the plain one; None where the weights come back bit
            for bit.
        without: other ways to run it, in words, against the plain model; the first is without the key.
    """

    plan: Plan
    with_key: Agreement | None
    without: dict[str, Agreement]

    @property
    def is_weak(self) -> bool:
        """Whether the output barely changes without the key."""
        return any(found.is_close for found in self.without.values())


class Bench(Protocol):
    """Runs models to compare them; handed in by whoever knows their host."""

    def run(
        self,
        model: nn.Module,
        maps: Sequence[tuple[Site, MapEntry, Map]] = (),
        cipher: BlockCipher | None = None,
        whole: bool = False,
    ) -> Outputs:
        """All outputs of a test and a training pass, by name, from fixed random states and pictures.

        Args:
            model: stays as it is.
            maps: encrypt the feature maps at these sites.
            cipher: encrypt the pictures.
            whole: take pictures of whole blocks of the model's first layer, from 8-bit images on.

        Raises:
            PointError: it does not run.
        """

    def agreement(self, plain: Outputs, other: Outputs) -> Agreement:
        """Compare the outputs of two runs."""
