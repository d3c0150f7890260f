"""Scoring and learning on an attacker's few photos: what the searching and learning attacks share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from keyseg_mm.audit.attacks._spots import Spot, hooked
from keyseg_mm.audit.case import Case, GuessHook, MatrixMap, Photos
from keyseg_mm.maps import ChannelRotation
from keyseg_mm.maps.base import ChannelMap

BATCH = 4


def cross_entropy(case: Case, model: nn.Module, photos: Photos) -> Tensor:
    """Mean cross entropy over the labelled pixels of some photos; gradients flow."""
    assert photos.labels is not None
    scores = case.logits(model, photos.images)
    return F.cross_entropy(scores, photos.labels, ignore_index=photos.ignore_index)


def mean_iou(case: Case, model: nn.Module, photos: Photos) -> float:
    """mIoU in percent over the classes that occur."""
    assert photos.labels is not None
    n, counts = case.num_classes, torch.zeros(case.num_classes**2)
    with torch.no_grad():
        for at in range(0, len(photos), BATCH):
            part = photos.take(slice(at, at + BATCH))
            assert part.labels is not None
            guess = case.logits(model, part.images).argmax(1)
            valid = part.labels != part.ignore_index
            counts += torch.bincount(part.labels[valid] * n + guess[valid], minlength=n * n).cpu()
    table = counts.reshape(n, n)
    union = table.sum(0) + table.sum(1) - table.diag()
    return float(100 * (table.diag()[union > 0] / union[union > 0]).mean())


def split(photos: Photos, seed: int, share: float = 0.25) -> tuple[Photos, Photos]:
    """Photos to learn from and others to choose by; one photo serves for both."""
    order = np.random.default_rng(seed).permutation(len(photos)).tolist()
    held = round(len(order) * share)
    if len(order) < 2 or not held:
        return photos, photos
    return photos.take(order[held:]), photos.take(order[:held])


class Fitness:
    """Cross entropy of guesses on a fixed set of photos, with the model built once.

    Args:
        case: the case.
        photos: labelled.
        spots: the points that may have guesses.
    """

    def __init__(self, case: Case, photos: Photos, spots: list[Spot]) -> None:
        self.case, self.photos = case, photos
        self.model = case.model()
        self.guesses: dict[str, Any] = {}
        for spot in spots:
            GuessHook(spot.point, self._at(spot.text), (case.sites or {}).get(spot.text)).attach(self.model)

    def _at(self, text: str) -> Callable[[Tensor, int], Tensor]:
        def apply(x: Tensor, dim: int) -> Tensor:
            guess = self.guesses.get(text)
            result: Tensor = x if guess is None else guess(x, dim)
            return result

        return apply

    @torch.no_grad()
    def __call__(self, guesses: Mapping[str, ChannelMap]) -> float:
        """Cross entropy with these guesses."""
        self.guesses = dict(guesses)
        parts = [self.photos.take(slice(at, at + BATCH)) for at in range(0, len(self.photos), BATCH)]
        return float(np.mean([float(cross_entropy(self.case, self.model, part)) for part in parts]))

    def slopes(self, guesses: Mapping[str, ChannelMap], spot: Spot) -> tuple[NDArray[np.float64], Any]:
        """The gradient of the cross entropy by the (c, c) matrix of one guess, and that matrix.

        Zero where only auxiliary heads read the point's map.
        """
        matrix = guesses[spot.text].matrix().to(self.photos.images).requires_grad_(True)
        self.guesses = {**guesses, spot.text: MatrixMap(matrix)}
        with torch.enable_grad():
            loss = cross_entropy(self.case, self.model, self.photos.take(slice(0, BATCH)))
            (slope,) = torch.autograd.grad(loss, [matrix], materialize_grads=True)
        return slope.cpu().double().numpy(), matrix.detach().cpu().double().numpy()

    def miou(self, guesses: Mapping[str, ChannelMap]) -> float:
        """mIoU with these guesses."""
        self.guesses = dict(guesses)
        return mean_iou(self.case, self.model, self.photos)


class StandIn(nn.Module):
    """A learnable c x c map at one point; :meth:`matrix` says what it is now."""

    def __init__(self, spot: Spot) -> None:
        super().__init__()
        self.spot = spot

    def matrix(self) -> Tensor:
        """The map, (c, c)."""
        raise NotImplementedError

    def anneal(self, share: float) -> None:
        """Be told how much of the time has gone."""

    def forward(self, x: Tensor, dim: int) -> Tensor:
        return torch.tensordot(self.matrix().to(x), x, dims=([1], [dim])).movedim(0, dim)  # type: ignore[no-any-return]

    def rounded(self) -> ChannelMap:
        """The nearest map of the spot's family."""
        return self.spot.round(self.matrix().detach().cpu().double().numpy())


class FreeMatrix(StandIn):
    """Any matrix; for a rotation, nothing outside its blocks.

    Args:
        spot: where.
        start: ``'identity'`` or ``'uniform'``.
    """

    def __init__(self, spot: Spot, start: str) -> None:
        super().__init__(spot)
        c = spot.channels
        mask = torch.zeros(c, c)
        for block in spot.blocks():
            mask[block, block] = 1
        first = torch.eye(c) if start == 'identity' else mask / mask.sum(1, keepdim=True)
        self.value = nn.Parameter(first)
        self.register_buffer('mask', mask)

    def matrix(self) -> Tensor:
        return self.value * self.mask  # type: ignore[operator]


class SoftPermutation(StandIn):
    """A doubly stochastic matrix by Sinkhorn's iterations, colder and so nearer to a permutation as time goes.

    Where the transform may negate, a tanh for each output channel gives a soft sign; a rotation is parametrised in its
    own family instead, block by block, by the matrix exponential of a skew-symmetric matrix and one soft reflection.

    Args:
        spot: where.
        rng: breaks the symmetry of the start.
    """

    ITERATIONS = 20
    WARM, COLD = 1.0, 0.08

    def __init__(self, spot: Spot, rng: np.random.Generator) -> None:
        super().__init__(spot)
        c, self.temperature = spot.channels, self.WARM
        self.scores = nn.Parameter(torch.from_numpy(rng.standard_normal((c, c)) * 0.01).float())
        self.turning = spot.family == ChannelRotation.__name__
        flips = len(spot.blocks()) if self.turning else c
        needed = spot.signed or self.turning
        self.signs = nn.Parameter(torch.from_numpy(rng.standard_normal(flips) * 0.1).float()) if needed else None

    def anneal(self, share: float) -> None:
        self.temperature = self.WARM * (self.COLD / self.WARM) ** share

    def matrix(self) -> Tensor:
        if self.turning:
            turns = [self._turn(b, k) for k, b in enumerate(self.spot.blocks())]
            return torch.block_diag(*turns)  # type: ignore[no-any-return,no-untyped-call]
        log = self.scores * (10 / self.temperature) * 0.3
        for _ in range(self.ITERATIONS):
            log = log - log.logsumexp(1, keepdim=True)
            log = log - log.logsumexp(0, keepdim=True)
        soft = log.exp()
        return soft if self.signs is None else soft * torch.tanh(self.signs / self.temperature)[:, None]

    def _turn(self, block: slice, number: int) -> Tensor:
        """A rotation of one block, its first channel negated or not as the loss likes."""
        assert self.signs is not None
        part = self.scores[block, block]
        flip = torch.ones(len(part), device=part.device)
        flip = torch.cat([torch.tanh(self.signs[number : number + 1] / self.temperature), flip[1:]])
        return torch.matrix_exp(part - part.T) * flip


def place(case: Case, model: nn.Module, stand_ins: list[StandIn]) -> list[Any]:
    """Hook stand-ins to a model; returns the handles."""
    sites = case.sites or {}
    return [GuessHook(s.spot.point, s, sites.get(s.spot.text)).attach(model) for s in stand_ins]


def freeze(model: nn.Module) -> nn.Module:
    """No parameter of the model learns."""
    return model.requires_grad_(False).eval()


__all__ = [
    'BATCH',
    'Fitness',
    'FreeMatrix',
    'SoftPermutation',
    'StandIn',
    'cross_entropy',
    'freeze',
    'hooked',
    'mean_iou',
    'place',
    'split',
]
