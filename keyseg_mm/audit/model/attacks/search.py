"""Searching for the key by trying: random keys, and hill climbing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keyseg_mm.audit.engine.budget import Clock, Progress
from keyseg_mm.audit.model.attack import Attack, Attempt, Case, LabelledPhotos, register
from keyseg_mm.audit.model.attacks.fitness import Fitness
from keyseg_mm.audit.model.attacks.points import (
    AttackedPoint,
    Guesses,
    Matrix,
    array_of,
    points_of,
    polar,
)
from keyseg_mm.audit.model.attacks.probing import firing_order

IMAGES = 8  # that a guess is tried on, at most
RANKED, DRAWN = 12, 6  # moves tried at a point by the gradient's word, and at random, before the next point's turn
Mask = NDArray[np.bool_]


@register
class RandomKeys(Attack):
    """Draw keys at random; with labelled images keep the best of as many as the budget allows.

    Needs nothing. What a random key gives is the floor of every recovery; the best of many shows that trying keys is
    no way, or that the fitness hardly depends on the key.
    """

    name = 'random-keys'
    title = 'random keys'
    source = 'every paper on access control; Ito et al., arXiv 2206.05422'
    cost = 'a forward pass over at most 8 images for each key tried'
    KEYS = 100

    def run(self, case: Case, progress: Progress) -> Attempt:
        clock, points, rng = case.budget.clock(), points_of(case), np.random.default_rng(case.seed)
        best: Guesses = {p.text: p.random(rng) for p in points}
        if LabelledPhotos not in case:
            return Attempt(best, notes='one random key: nothing to choose by')
        photos = case[LabelledPhotos].take(slice(0, IMAGES))
        fitness = Fitness(case, photos, points)
        lowest, trail = fitness(best), []
        keys = min(self.KEYS, case.budget.steps)
        for at in range(1, keys):
            if not clock.tick():
                break
            guesses: Guesses = {p.text: p.random(rng) for p in points}
            value = fitness(guesses)
            if value < lowest:
                best, lowest = guesses, value
            trail.append({'tries': at, 'cross_entropy': lowest})
            progress(at / keys, f'{at} keys: {lowest:.2f}')
        return Attempt(
            best, None, len(photos), exhausted=clock.out_of_time, notes=f'best of {len(trail) + 1} keys', trail=trail
        )


class Climb:
    """Take every move that lowers the cross entropy, the most promising first, until none is found or time is up.

    The gradient by a guess's matrix says to first order what each of its c^2/2 swaps and c sign flips would do; the
    best dozen are tried in that order, and some random ones, for where the first order misleads.

    Args:
        fitness: to be lowered.
        points: in the order in which they are worked on.
        clock: a step is a forward pass.
        rng: of the random moves.
        free: by point, the rows that may change; all where it has no entry.

    Attributes:
        trail: the curve.
        ended: the budget ended it.
    """

    def __init__(
        self,
        fitness: Fitness,
        points: list[AttackedPoint],
        clock: Clock,
        rng: np.random.Generator,
        free: Mapping[str, Mask] | None = None,
    ) -> None:
        self.fitness, self.points, self.clock, self.rng, self.free = fitness, points, clock, rng, free or {}
        self.trail: list[dict[str, Any]] = []
        self.ended = False

    def run(self, start: Guesses, progress: Progress) -> tuple[float, Guesses]:
        """The lowest cross entropy, and the guesses that give it, from a guess at every point."""
        best, lowest, idle = dict(start), self.fitness(start), 0
        while idle < len(self.points) and not self.ended:
            for point in self.points:
                better = self._improve(point, best, lowest)
                idle = 0 if better else idle + 1
                lowest, best = better or (lowest, best)
                progress(self.clock.share, f'{self.clock.steps} tries, cross entropy {lowest:.3f}')
                if self.ended or idle >= len(self.points):
                    break
        return lowest, best

    def _improve(self, point: AttackedPoint, best: Guesses, lowest: float) -> tuple[float, Guesses] | None:
        slope = self.fitness.slope(best, point)
        if not slope.any():  # no output depends on it
            return None
        movable = np.flatnonzero(self.free.get(point.text, np.ones(point.channels, dtype=bool)))
        for trial in _moves(point, array_of(best[point.text]), movable, slope, self.rng):
            if not self.clock.tick():
                self.ended = True
                return None
            guesses = {**best, point.text: point.round(trial)}
            value = self.fitness(guesses)
            if value < lowest - 1e-6:
                self.trail.append({'tries': self.clock.steps, 'cross_entropy': value})
                return value, guesses
        return None


def _moves(
    point: AttackedPoint, matrix: Matrix, movable: NDArray[Any], slope: Matrix, rng: np.random.Generator
) -> Iterator[Matrix]:
    """Changed matrices of a guess, the most promising first."""
    if point.turned:
        yield from _turns(point, matrix, movable, slope, rng)
        return
    # what the loss changes by, to first order, if rows i and j change places, or row i its sign
    gain = slope @ matrix.T
    change = gain + gain.T - gain.diagonal()[:, None] - gain.diagonal()[None]
    a, b = (movable[index] for index in np.triu_indices(len(movable), 1))
    ranked = list(zip(change[a, b], a, b))
    if point.signed:
        ranked += list(zip(-2 * gain.diagonal()[movable], movable, movable))
    ranked.sort(key=lambda item: float(item[0]))
    drawn = [ranked[i] for i in rng.permutation(len(ranked))[:DRAWN]]
    for _, i, j in [*ranked[:RANKED], *drawn]:
        trial = matrix.copy()
        if i == j:
            trial[i] *= -1
        else:
            trial[[i, j]] = trial[[j, i]]
        yield trial


def _turns(
    point: AttackedPoint, matrix: Matrix, movable: NDArray[Any], slope: Matrix, rng: np.random.Generator
) -> Iterator[Matrix]:
    """Steps of several lengths down the slope within the rotations, and random turns of one block."""
    for step in (1.0, 0.3, 0.1, 0.03) if len(movable) == point.channels else ():
        trial = matrix.copy()
        for block in point.blocks():
            size = np.abs(slope[block, block]).max() + 1e-12
            trial[block, block] = polar(matrix[block, block] - step * slope[block, block] / size)
        yield trial
    blocks = [b for b in point.blocks() if np.isin(np.arange(b.start, b.stop), movable).all()]
    for _ in range(DRAWN if blocks else 0):
        block = blocks[int(rng.integers(len(blocks)))]
        trial, old = matrix.copy(), matrix[block, block]
        trial[block, block] = polar(old + rng.standard_normal(old.shape) * rng.choice([0.05, 0.2, 1.0]))
        yield trial


@register
class HillClimbing(Attack):
    """Swap two channels of the guess, or flip a sign, and keep what lowers the cross entropy.

    Needs labelled images. Starts from no key at all or a random key, whichever is better, and goes round the points.
    The gradient by the guess's matrix ranks all swaps and flips of a point at once, to first order, so that the few
    worth a forward pass are tried first. If it comes to rest it begins anew from another random key, and keeps the
    best. The fitness is the cross entropy, which moves where mIoU stands still.
    """

    name = 'hill-climbing'
    title = 'hill climbing on the key'
    needs = frozenset({LabelledPhotos})
    source = 'MaungMaung and Kiya, arXiv 2109.00224; the breaks of HPNN'
    cost = 'a forward pass over at most 8 images for each try'
    STARTS = 4

    def run(self, case: Case, progress: Progress) -> Attempt:
        clock, points, rng = case.budget.clock(), firing_order(case, points_of(case)), np.random.default_rng(case.seed)
        photos = case[LabelledPhotos].take(slice(0, IMAGES))
        climb, ends, curve = Climb(Fitness(case, photos, points), points, clock, rng), [], []
        identity: Guesses = {p.text: p.identity() for p in points}
        for at in range(self.STARTS):
            random: Guesses = {p.text: p.random(rng) for p in points}
            start = min((identity, random), key=climb.fitness) if at == 0 else random
            climb.trail = []
            ends.append(climb.run(start, progress))
            curve += [{'start': at, **one} for one in climb.trail]
            if climb.ended:
                break
        lowest, guesses = min(ends, key=lambda end: end[0])
        words = f'{clock.steps} tries from {len(ends)} starts, cross entropy {lowest:.3f}'
        return Attempt(guesses, None, len(photos), exhausted=climb.ended, notes=words, trail=curve)
