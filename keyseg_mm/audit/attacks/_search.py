"""Searching for a key by changing a guess bit by bit: what hill climbing, genetic search and completion share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keyseg_mm.audit.attack import Progress
from keyseg_mm.audit.attacks._learn import Fitness
from keyseg_mm.audit.attacks._spots import Spot, array_of, polar, rotation_of
from keyseg_mm.audit.case import Clock
from keyseg_mm.maps import ChannelRotation
from keyseg_mm.maps.base import ChannelMap

RANKED, DRAWN = 12, 6  # moves tried at a point by the gradient's word, and at random, before the next point's turn
Matrix = NDArray[np.float64]
Free = Mapping[str, NDArray[np.bool_]]  # by point, the rows that may change


def climb(
    fitness: Fitness,
    spots: list[Spot],
    start: dict[str, ChannelMap],
    clock: Clock,
    rng: np.random.Generator,
    progress: Progress,
    free: Free | None = None,
) -> tuple[dict[str, ChannelMap], list[dict[str, Any]], bool]:
    """Take every move that lowers the cross entropy, the most promising first, until none is found or time is up.

    The gradient by a guess's matrix says to first order what each of its c^2/2 swaps and c sign flips would do; the
    best dozen are tried in that order, and some random ones, for where the first order misleads.

    Args:
        fitness: to be lowered.
        spots: in the order in which they are worked on.
        start: a guess at every spot.
        clock: a step is a forward pass.
        rng: of the random moves.
        progress: called after each spot.
        free: rows that may change; all where a spot has no entry.

    Returns:
        The guesses, the curve, and whether the budget ended it.
    """
    best, lowest, idle = dict(start), fitness(start), 0
    trail: list[dict[str, Any]] = []
    while idle < len(spots):
        for spot in spots:
            improved, matrix = False, array_of(best[spot.text])
            slope = fitness.slopes(best, spot)[0]
            if not slope.any():  # no output depends on it
                idle += 1
                continue
            movable = np.flatnonzero((free or {}).get(spot.text, np.ones(spot.channels, dtype=bool)))
            for trial in moves(spot, matrix, movable, slope, rng):
                if not clock.tick():
                    return best, trail, True
                guesses = {**best, spot.text: spot.round(trial)}
                value = fitness(guesses)
                if value < lowest - 1e-6:
                    best, lowest, improved = guesses, value, True
                    trail.append({'tries': clock.steps, 'cross_entropy': lowest})
                    break
            idle = 0 if improved else idle + 1
            progress(clock.share, f'{clock.steps} tries, cross entropy {lowest:.3f}')
            if idle >= len(spots):
                break
    return best, trail, False


def moves(
    spot: Spot, matrix: Matrix, movable: NDArray[Any], slope: Matrix, rng: np.random.Generator
) -> Iterator[Matrix]:
    """Changed matrices of a guess, the most promising first."""
    if spot.family == ChannelRotation.__name__:
        yield from _turns(spot, matrix, movable, slope, rng)
        return
    ranked = _swaps(matrix, movable, slope) + (_flips(matrix, movable, slope) if spot.signed else [])
    ranked.sort(key=lambda item: item[0])
    drawn = [ranked[i] for i in rng.permutation(len(ranked))[:DRAWN]]
    for _, i, j in [*ranked[:RANKED], *drawn]:
        trial = matrix.copy()
        if i == j:
            trial[i] *= -1
        else:
            trial[[i, j]] = trial[[j, i]]
        yield trial


def _swaps(matrix: Matrix, movable: NDArray[Any], slope: Matrix) -> list[tuple[float, int, int]]:
    """All swaps of two rows, with the first-order change of the loss."""
    gain = slope @ matrix.T
    change = gain + gain.T - gain.diagonal()[:, None] - gain.diagonal()[None]
    a, b = np.triu_indices(len(movable), 1)
    return [(float(change[i, j]), int(i), int(j)) for i, j in zip(movable[a], movable[b])]


def _flips(matrix: Matrix, movable: NDArray[Any], slope: Matrix) -> list[tuple[float, int, int]]:
    change = -2 * (slope * matrix).sum(1)
    return [(float(change[i]), int(i), int(i)) for i in movable]


def _turns(
    spot: Spot, matrix: Matrix, movable: NDArray[Any], slope: Matrix, rng: np.random.Generator
) -> Iterator[Matrix]:
    """Steps of several lengths down the slope within the rotations, and random turns of one block."""
    whole = len(movable) == spot.channels
    for step in (1.0, 0.3, 0.1, 0.03) if whole else ():
        trial = matrix.copy()
        for block in spot.blocks():
            size = np.abs(slope[block, block]).max() + 1e-12
            trial[block, block] = polar(matrix[block, block] - step * slope[block, block] / size)
        yield trial
    blocks = [b for b in spot.blocks() if np.isin(np.arange(b.start, b.stop), movable).all()]
    for _ in range(DRAWN if blocks else 0):
        block = blocks[int(rng.integers(len(blocks)))]
        trial = matrix.copy()
        n = block.stop - block.start
        trial[block, block] = polar(matrix[block, block] + rng.standard_normal((n, n)) * rng.choice([0.05, 0.2, 1.0]))
        yield trial


def completed(spot: Spot, known: NDArray[np.bool_], table: Matrix, rng: np.random.Generator) -> ChannelMap:
    """A random map of the family among those that have the known rows.

    Args:
        spot: where.
        known: rows that are known, (c,).
        table: the map's matrix, right in those rows.
        rng: of the rest.
    """
    if spot.family == ChannelRotation.__name__:
        return rotation_of([_completed_block(known[b], table[b, b], rng) for b in spot.blocks()])
    matrix = np.zeros_like(table, dtype=np.float64)
    taken = np.abs(table[known]).argmax(1)
    rest = np.setdiff1d(np.arange(spot.channels), taken)
    matrix[known] = table[known]
    signs = rng.choice([-1.0, 1.0], len(rest)) if spot.signed else np.ones(len(rest))
    matrix[np.flatnonzero(~known), rng.permutation(rest)] = signs
    return spot.round(matrix)


def _completed_block(known: NDArray[np.bool_], table: Matrix, rng: np.random.Generator) -> Matrix:
    block = np.zeros_like(table)
    block[known] = table[known]
    rows = rng.standard_normal((int((~known).sum()), len(table)))
    rows -= rows @ block[known].T @ block[known]
    if len(rows):
        u, _, v = np.linalg.svd(rows, full_matrices=False)
        block[~known] = u @ v
    return block
