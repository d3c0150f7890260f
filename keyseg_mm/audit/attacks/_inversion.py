"""From readings at a point to a guess: restarts of the exchange search, or gradient descent for rotations."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from keyseg_mm.audit.attacks._exchange import GramTerm, NormTerm, Search, Term
from keyseg_mm.audit.attacks._moments import Reading
from keyseg_mm.audit.attacks._spots import Spot, array_of
from keyseg_mm.maps import ChannelRotation
from keyseg_mm.maps.base import ChannelMap

Array = NDArray[np.float64]

STRENGTHS = (2.0, 1.0, 6.0)  # of the Gram term, in turn: where it says much, more of it finds the way sooner
SWEEPS, MOST_RUNS = 60, 60
FEW, MARGIN = 4, 10.0  # channels of which all orders are tried; energy by which the second best must be worse
STEPS, LR = 400, 0.05  # of a descent over rotations
# shares of it: until orthogonality begins to count, and from which it is enforced; the penalty's largest weight
FREE, ON_IT, STIFFEST = 0.3, 0.75, 1e5


@dataclass(frozen=True)
class Found:
    """What a search at one point came to.

    Attributes:
        guess: the map.
        misfit: of the statistics, in units of their usual noise; about 1 is as good as the truth. NaN without a norm.
        runs: restarts made.
        agreed: whether two restarts ended in nearly the same guess, that of the lowest energy.
    """

    guess: ChannelMap
    misfit: float
    runs: int
    agreed: bool


def invert(spot: Spot, readings: Sequence[Reading], seconds: float, rng: np.random.Generator) -> Found:
    """The map under which the readers' statistics meet those of the norms behind them, and angles correlations.

    Args:
        spot: where.
        readings: of its readers.
        seconds: that it may take.
        rng: of starts and moves.
    """
    if spot.family == ChannelRotation.__name__:
        return _turn(spot, readings, seconds, rng)
    until, ends = time.monotonic() + seconds, list[tuple[float, Array]]()
    judge = _search(spot, readings, 1.0, rng)
    if spot.channels <= FEW:
        return _all(spot, judge)
    while len(ends) < MOST_RUNS and (not ends or time.monotonic() < until):
        search = _search(spot, readings, STRENGTHS[len(ends) % len(STRENGTHS)], rng)
        # the first ends in time for a second opinion; each later one is a little more patient
        finished = search.cool(SWEEPS * (1 + len(ends) // 6), until)
        matrix = search.matrix()
        judge.place(matrix)
        if finished:
            judge.cool_down(until)
        ends.append((judge.energy(), judge.matrix()))
        if _agreed(ends):
            break
    energy, best = min(ends, key=lambda end: end[0])
    judge.place(best)
    judge.energy()
    return Found(spot.round(best), _misfit(judge.terms), len(ends), _agreed(ends))


def _all(spot: Spot, judge: Search) -> Found:
    """The best of all maps there are; sure if the second best is far behind."""
    ends: list[tuple[float, Array]] = []
    for table in itertools.permutations(range(spot.channels)):
        for signs in itertools.product((1.0, -1.0), repeat=spot.channels) if spot.signed else [(1.0,) * spot.channels]:
            matrix = np.eye(spot.channels)[list(table)] * np.array(signs)[:, None]
            judge.place(matrix)
            ends.append((judge.energy(), matrix))
    ends.sort(key=lambda end: end[0])
    judge.place(ends[0][1])
    judge.energy()
    sure = len(ends) < 2 or ends[1][0] > ends[0][0] + MARGIN
    return Found(spot.round(ends[0][1]), _misfit(judge.terms), len(ends), sure)


def _search(spot: Spot, readings: Sequence[Reading], strength: float, rng: np.random.Generator) -> Search:
    terms: list[Term] = [NormTerm(r) for r in readings if r.target_mean is not None]
    terms += [GramTerm(r, strength / len(readings)) for r in readings]
    return Search(terms, spot.channels, spot.signed, rng)


def _agreed(ends: list[tuple[float, Array]]) -> bool:
    """Whether the two lowest ends are nearly one; of chance two searches never meet."""
    if len(ends) < 2:
        return False
    (_, one), (_, other) = sorted(ends, key=lambda end: end[0])[:2]
    return bool((one * other).sum() > 0.9 * len(one))


def _misfit(terms: Sequence[Term]) -> float:
    norms = [t for t in terms if isinstance(t, NormTerm)]
    equations = sum(len(t.wanted) for t in norms)
    return sum(t.energy() for t in norms) / equations if equations else float('nan')


def _turn(spot: Spot, readings: Sequence[Reading], seconds: float, rng: np.random.Generator) -> Found:
    """Gradient descent from random starts, of two kinds in turn; the best of all."""
    until, best, runs = time.monotonic() + seconds, (np.inf, np.eye(spot.channels), float('nan')), 0
    loss = _Loss(readings)
    while runs < MOST_RUNS and (not runs or time.monotonic() < until):
        descend = _within_the_family if runs % 3 == 2 else _through_all_matrices
        matrix = torch.from_numpy(descend(spot, loss, until, rng))
        value, misfit = loss(matrix)
        if float(value) < best[0]:
            best = float(value), np.asarray(matrix.numpy()), misfit
        runs += 1
    return Found(spot.round(best[1]), best[2], runs, False)


def _within_the_family(spot: Spot, loss: _Loss, until: float, rng: np.random.Generator) -> Array:
    """A descent among rotations, from a random one: ``M0 exp(S - S^T)``; handedness stays as drawn."""
    first = torch.from_numpy(array_of(spot.random(rng)))
    skew = torch.zeros_like(first).requires_grad_(True)
    adam = torch.optim.Adam([skew], lr=LR)

    def matrix() -> Tensor:
        turns = [torch.matrix_exp(skew[b, b] - skew[b, b].T) for b in spot.blocks()]
        turned: Tensor = torch.block_diag(*turns)  # type: ignore[no-untyped-call]
        return first @ turned

    with torch.enable_grad():
        for step in range(STEPS):
            adam.param_groups[0]['lr'] = LR * (1 - 0.9 * step / STEPS)
            value = loss(matrix())[0]
            adam.zero_grad()
            value.backward()  # type: ignore[no-untyped-call]
            adam.step()
            if time.monotonic() > until:
                break
    return array_of(spot.round(matrix().detach().numpy()))


def _through_all_matrices(spot: Spot, loss: _Loss, until: float, rng: np.random.Generator) -> Array:
    """A descent in which each block is any matrix at first and orthogonal in the end.

    The detour through other matrices is what lets a block change its handedness.
    """
    mask = np.zeros((spot.channels, spot.channels))
    for block in spot.blocks():
        mask[block, block] = 1
    keep, one = torch.from_numpy(mask), torch.eye(spot.channels, dtype=torch.float64)
    free = torch.from_numpy(array_of(spot.random(rng)) * 0.7).requires_grad_(True)
    adam = torch.optim.Adam([free], lr=LR)
    with torch.enable_grad():
        for step in range(STEPS):
            matrix, share = free * keep, step / STEPS
            value = loss(matrix)[0]
            if share > FREE:
                value = value + STIFFEST ** ((share - FREE) / (1 - FREE)) * ((matrix @ matrix.T - one) ** 2).sum()
            adam.param_groups[0]['lr'] = LR * (1 - 0.9 * share)
            adam.zero_grad()
            value.backward()  # type: ignore[no-untyped-call]
            adam.step()
            if share > ON_IT:
                with torch.no_grad():
                    free.copy_(torch.from_numpy(array_of(spot.round(free.numpy()))))
            if time.monotonic() > until:
                break
    return array_of(spot.round(free.detach().numpy()))


class _Loss:
    """The energy of :mod:`._exchange` for any matrix, with gradients."""

    def __init__(self, readings: Sequence[Reading]) -> None:
        self.norms = [NormTerm(r) for r in readings if r.target_mean is not None]
        self.grams = [(torch.from_numpy(r.weight), GramTerm(r, 1.0)) for r in readings]

    def __call__(self, matrix: Tensor) -> tuple[Tensor, float]:
        """Energy and the misfit of the statistics."""
        total, misfit, equations = matrix.new_zeros(()), 0.0, 0
        for term in self.norms:
            u = torch.einsum('ij,iok->jko', matrix, torch.from_numpy(term.weight)).flatten(0, 1)
            level = torch.from_numpy(term.mean).flatten() @ u
            covariance = torch.from_numpy(term.covariance).flatten(2).flatten(0, 1)
            spread = ((covariance @ u) * u).sum(0).clamp_min(1e-12)
            wanted, variance = torch.from_numpy(term.wanted), torch.from_numpy(term.variance)
            part = ((level - wanted) ** 2 / variance).sum() / (2 * term.MEAN_NOISE**2)
            part = part + ((spread / variance).log() ** 2).sum() / (2 * term.VARIANCE_NOISE**2)
            total, misfit, equations = total + part, misfit + float(part.detach()), equations + len(wanted)
        for weight, gram in self.grams:
            flat = torch.einsum('ij,iok->jok', matrix, weight).flatten(1)
            flat = flat / flat.norm(dim=1, keepdim=True).clamp_min(1e-12)
            angles = flat @ flat.T
            scale = len(angles) / ((angles - torch.diag(angles.diagonal())) ** 2).sum().sqrt().clamp_min(1e-12)
            total = total - (scale * angles * torch.from_numpy(gram.correlations)).sum() / (2 * len(self.grams))
        return total, misfit / equations if equations else float('nan')
