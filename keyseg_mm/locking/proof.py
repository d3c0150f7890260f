"""Proofs of a lock, before it is written: with the key the model is the plain one, and without it is not.

How a model is run is the host's matter: it is handed in as a :class:`Bench`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from keyseg_mm.entries import MapEntry
from keyseg_mm.errors import LockError
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
        loss_error: largest relative error of a loss of the training pass; NaN where there is none to compare.
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
        return self.error <= LIMIT and not self.loss_error > LOSS_LIMIT

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


def agreement(plain: Outputs, other: Outputs) -> Agreement:
    """Compare the outputs of two runs.

    Raises:
        LockError: they cannot be compared, since the model handed out other things, or nothing finite.
    """
    if plain.keys() != other.keys() or not plain:
        raise LockError('the model handed out other things in one run than in the next, and cannot be compared')
    errors = {name: _relative_error(plain[name], other[name]) for name in plain}
    test = {name: error for name, error in errors.items() if not name.startswith('train')}
    empty = [name for name, error in test.items() if math.isnan(error)]
    if empty:
        raise LockError(
            f'the plain model gives no finite number ({empty[0]}), and nothing can be proved of it: look for NaN and '
            'infinity in its weights and its statistics'
        )
    train = [error for name, error in errors.items() if name not in test and not math.isnan(error)]
    maps = [n for n in test if plain[n].dim() == 3 and plain[n].shape[0] > 1]
    same, kappa = math.nan, math.nan
    if maps:
        same, kappa = _same_pixels(plain[maps[0]].argmax(0), other[maps[0]].argmax(0))
    return Agreement(max(test.values(), default=0.0), max(train, default=math.nan), same, kappa)


def _relative_error(a: Tensor, b: Tensor) -> float:
    """Where both are finite; infinite where only one is, NaN where nothing is."""
    finite = a.isfinite()
    if not a.numel() and a.shape == b.shape:
        return 0.0
    if a.shape != b.shape or not torch.equal(finite, b.isfinite()):
        return math.inf  # with its weights in a wrong order a model may overflow
    if not finite.any():
        return math.nan
    one, two = a[finite].double(), b[finite].double()
    size, gap = float(one.norm()), float((one - two).norm())
    return gap / size if size else (0.0 if not gap else math.inf)


def _same_pixels(a: Tensor, b: Tensor) -> tuple[float, float]:
    same = float((a == b).float().mean())
    classes = int(max(a.max(), b.max())) + 1
    shares = [torch.bincount(x.flatten(), minlength=classes).double() / x.numel() for x in (a, b)]
    chance = float((shares[0] * shares[1]).sum())
    return same, (same - chance) / (1 - chance) if chance < 1 else math.nan
