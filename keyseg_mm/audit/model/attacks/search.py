"""Searching for the key by trying: a random key, hill climbing, and both from part of the key."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import cycle

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from keyseg_mm.audit.engine.budget import Progress
from keyseg_mm.audit.model.attack import Attack, Attempt, Case, LabelledPhotos, LeakedRows, register
from keyseg_mm.audit.model.attacks.points import AttackedPoint, Guesses, Matrix, array_of, points_of
from keyseg_mm.audit.model.attacks.probing import place
from keyseg_mm.audit.model.forward import MatrixMap
from keyseg_mm.audit.model.training import cross_entropy
from keyseg_mm.maps import ChannelMap

IMAGES = 8  # that a guess is tried on, at most
RANKED, DRAWN = 12, 6  # moves tried at a point by the gradient's word, and at random, before the next point's turn
_BATCH = 4
Mask = NDArray[np.bool_]


class Fitness:
    """Cross entropy of guesses on some labelled photos, with the model built once; it moves where mIoU stands still.

    Args:
        case: the case.
        photos: labelled.
        points: those that may have guesses.
    """

    def __init__(self, case: Case, photos: LabelledPhotos, points: list[AttackedPoint]) -> None:
        self.photos, self.model = photos, case.model()
        self.guesses: Mapping[str, ChannelMap] = {}
        for point in points:
            place(case, self.model, point, self._at(point.text))

    def _at(self, text: str) -> Callable[[Tensor, int], Tensor]:
        return lambda x, dim: self.guesses[text](x, dim) if text in self.guesses else x

    @torch.no_grad()
    def __call__(self, guesses: Mapping[str, ChannelMap]) -> float:
        """Cross entropy with these guesses."""
        self.guesses = guesses
        return float(np.mean([float(self._loss(at)) for at in range(0, len(self.photos), _BATCH)]))

    def slope(self, guesses: Guesses, point: AttackedPoint) -> Matrix:
        """The gradient by the (c, c) matrix of one guess; zero where no output depends on the point's map."""
        matrix = guesses[point.text].matrix().to(self.photos.images).requires_grad_(True)
        self.guesses = {**guesses, point.text: MatrixMap(matrix)}
        with torch.enable_grad():
            (slope,) = torch.autograd.grad(self._loss(0), [matrix], materialize_grads=True)
        return np.asarray(slope.cpu().double().numpy())

    def _loss(self, at: int) -> Tensor:
        part = self.photos.take(slice(at, at + _BATCH))
        return cross_entropy(self.model, part.images, part.labels, part.ignore_index)


def climb(
    case: Case, fitness: Fitness, points: list[AttackedPoint], start: Guesses, free: Mapping[str, Mask], tell: Progress
) -> Attempt:
    """Take every move that lowers the cross entropy, until none is found or the budget ends.

    Args:
        case: a step of its budget is a forward pass.
        fitness: to be lowered.
        points: whose guesses may change.
        start: a guess at every point.
        free: by point, the rows that may change.
        tell: told of each point.
    """
    clock, rng = case.budget.clock(), np.random.default_rng(case.seed)
    best, lowest, idle = dict(start), fitness(start), 0
    for point in cycle(points):
        idle += 1
        slope = fitness.slope(best, point)
        for trial in _moves(point, array_of(best[point.text]), free[point.text], slope, rng):
            if not clock.tick():
                return Attempt(best, images_used=len(fitness.photos), exhausted=True)
            guesses = {**best, point.text: point.round(trial)}
            value = fitness(guesses)
            if value < lowest - 1e-6:
                lowest, best, idle = value, guesses, 0
                break
        tell(clock.share, f'{clock.steps} tries, cross entropy {lowest:.3f}')
        if idle == len(points):
            break
    return Attempt(best, images_used=len(fitness.photos))


def _moves(
    point: AttackedPoint, matrix: Matrix, rows: Mask, slope: Matrix, rng: np.random.Generator
) -> Iterator[Matrix]:
    """Changed matrices of a guess, the most promising first.

    The gradient says to first order what each swap of two rows and each change of a sign would do; the best dozen come
    first, and then some random ones, for where the first order misleads. A rotation goes down the slope.
    """
    if not slope.any():  # no output depends on it
        return
    if point.turned:
        for step in (1.0, 0.3, 0.1, 0.03):
            yield matrix - step * slope / np.abs(slope).max()
        return
    gain = slope @ matrix.T
    change = gain + gain.T - gain.diagonal()[:, None] - gain.diagonal()[None]  # if rows i and j change places
    movable = np.flatnonzero(rows)
    a, b = (movable[index] for index in np.triu_indices(len(movable), 1))
    ranked = list(zip(change[a, b], a, b))
    if point.signed:
        ranked += list(zip(-2 * gain.diagonal()[movable], movable, movable))
    ranked.sort(key=lambda item: float(item[0]))
    drawn = [ranked[i] for i in rng.permutation(len(ranked))[:DRAWN]]
    for _, i, j in [*ranked[:RANKED], *drawn]:
        trial = matrix.copy()
        trial[[i, j]] = -matrix[[i, j]] if i == j else matrix[[j, i]]
        yield trial


@register
class RandomKeys(Attack):
    """Draw a key at random: what it gives is the floor of every recovery."""

    name = 'random-keys'
    title = 'a random key'
    source = 'every paper on access control; Ito et al., arXiv 2206.05422'
    cost = 'nothing'

    def run(self, case: Case, progress: Progress) -> Attempt:
        rng = np.random.default_rng(case.seed)
        return Attempt({point.text: point.random(rng) for point in points_of(case)})


@register
class HillClimbing(Attack):
    """Swap two channels of the guess, flip a sign, or turn blocks, and keep what lowers the cross entropy.

    Starts from no key at all or a random key, whichever is better, and goes round the points until it comes to rest.
    """

    name = 'hill-climbing'
    title = 'hill climbing on the key'
    needs = frozenset({LabelledPhotos})
    source = 'MaungMaung and Kiya, arXiv 2109.00224; the breaks of HPNN'
    cost = 'a forward pass over at most 8 images for each try'

    def run(self, case: Case, progress: Progress) -> Attempt:
        points, rng = points_of(case), np.random.default_rng(case.seed)
        fitness = Fitness(case, case[LabelledPhotos].take(slice(0, IMAGES)), points)
        starts: list[Guesses] = [{p.text: p.identity() for p in points}, {p.text: p.random(rng) for p in points}]
        free = {p.text: np.ones(p.channels, dtype=bool) for p in points}
        return climb(case, fitness, points, min(starts, key=fitness), free, progress)


@register
class PartialKey(Attack):
    """Keep the rows of the key that leaked and draw the others; with labelled images, climb on with those.

    A good lock gives nothing for half a key. With most of a permutation right the model nearly works, the gradient
    points at the swaps that are missing, and climbing finishes the job. Rotations are drawn only.
    """

    name = 'partial-key'
    title = 'partial key, completed by hill climbing'
    needs = frozenset({LeakedRows})
    helped_by = frozenset({LabelledPhotos})
    source = 'Tiered language models, arXiv 2606.21638; MaungMaung and Kiya, arXiv 2109.00224'
    cost = 'a forward pass over at most 8 images for each try'

    def run(self, case: Case, progress: Progress) -> Attempt:
        points, rng, leak = points_of(case), np.random.default_rng(case.seed), case[LeakedRows]
        known = {p.text: leak.known.get(p.text, np.zeros(p.channels, dtype=bool)) for p in points}
        empty: Matrix = np.empty((0, 0))
        guesses = {p.text: completed(p, known[p.text], leak.tables.get(p.text, empty), rng) for p in points}
        if LabelledPhotos not in case:
            return Attempt(guesses)
        fitness = Fitness(case, case[LabelledPhotos].take(slice(0, IMAGES)), points)
        free = {text: ~rows for text, rows in known.items()}
        return climb(case, fitness, [p for p in points if not p.turned], guesses, free, progress)


def completed(point: AttackedPoint, known: Mask, table: Matrix, rng: np.random.Generator) -> ChannelMap:
    """A random map of the point's kind among those that have the known rows.

    Args:
        point: where.
        known: rows that are known, (c,).
        table: the map's matrix, right in those rows.
        rng: of the rest.
    """
    c = point.channels
    matrix = np.where(known[:, None], table, 0.0) if known.any() else np.zeros((c, c))
    if not point.turned:
        rest = np.setdiff1d(np.arange(c), np.abs(matrix[known]).argmax(1))
        signs = rng.choice([-1.0, 1.0], len(rest)) if point.signed else 1.0
        matrix[np.flatnonzero(~known), rng.permutation(rest)] = signs
        return point.round(matrix)
    for block in point.blocks():
        rows = matrix[block, block][known[block]]
        drawn = rng.standard_normal((len(matrix[block]) - len(rows), rows.shape[1]))
        u, _, v = np.linalg.svd(drawn - drawn @ rows.T @ rows, full_matrices=False)  # orthogonal to what is known
        matrix[block, block][~known[block]] = u @ v
    return point.round(matrix)
