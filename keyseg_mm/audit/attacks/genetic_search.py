"""Genetic search for the key."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from keyseg_mm.audit.attack import Attack, Attempt, Progress, register
from keyseg_mm.audit.attacks._learn import Fitness
from keyseg_mm.audit.attacks._spots import Spot, array_of, firing_order, spots_of
from keyseg_mm.audit.case import Case
from keyseg_mm.maps import ChannelRotation
from keyseg_mm.maps.base import ChannelMap

Matrix = NDArray[np.float64]
Genes = dict[str, ChannelMap]


def order_crossover(one: NDArray[np.int64], other: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """OX1 (Davis 1985): a stretch of one parent, the rest in the order in which the other has it."""
    n = len(one)
    low, high = sorted(rng.integers(0, n + 1, 2).tolist())
    child = np.full(n, -1, dtype=np.int64)
    child[low:high] = one[low:high]
    child[child < 0] = other[~np.isin(other, one[low:high])]
    return child


@register
class GeneticSearch(Attack):
    """Breed keys: the fitter of a population pass on stretches of their permutations, with swaps as mutations.

    Needs labelled images. A key's genes are its tables at all points. Parents are chosen by tournament; a child takes
    each point's permutation by order crossover, each channel's sign from either parent, each block of a rotation from
    either; then some swaps, flips or turns. The best two live on unchanged. The fitness is the cross entropy.

    Costs a forward pass over at most 4 images for each child.
    """

    name = 'genetic-search'
    title = 'genetic search for the key'
    needs = frozenset({'labelled'})
    source = 'MaungMaung and Kiya, arXiv 2109.00224; order crossover: Davis, IJCAI 1985'
    cost = 'a forward pass over a few images for each child'
    IMAGES, POPULATION, ELITE, MUTATIONS = 4, 24, 2, 1.5

    def run(self, case: Case, progress: Progress) -> Attempt:
        assert case.labelled is not None
        clock, spots, rng = case.budget.clock(), firing_order(case, spots_of(case)), np.random.default_rng(case.seed)
        photos = case.labelled.take(slice(0, self.IMAGES))
        fitness, trail = Fitness(case, photos, spots), []
        first: Genes = {s.text: s.round(np.eye(s.channels)) for s in spots}
        herd = [(fitness(first), first)]
        while len(herd) < self.POPULATION and clock.tick():
            genes = {s.text: s.random(rng) for s in spots}
            herd.append((fitness(genes), genes))
        while len(herd) > 1 and clock.share < 1:
            herd.sort(key=lambda one: one[0])
            children = herd[: self.ELITE]
            while len(children) < self.POPULATION and clock.tick():
                child = {s.text: self._child(s, self._pick(herd, rng), self._pick(herd, rng), rng) for s in spots}
                children.append((fitness(child), child))
            herd = children
            trail.append({'tries': clock.steps, 'cross_entropy': min(h[0] for h in herd)})
            progress(clock.share, f'cross entropy {trail[-1]["cross_entropy"]:.3f}')
        lowest, best = min(herd, key=lambda one: one[0])
        words = f'{clock.steps} children, cross entropy {lowest:.3f}'
        return Attempt(best, None, len(photos), clock.out_of_time, words, trail)

    def _pick(self, herd: list[tuple[float, Genes]], rng: np.random.Generator) -> Genes:
        return min((herd[int(i)] for i in rng.integers(0, len(herd), 3)), key=lambda one: one[0])[1]

    def _child(self, spot: Spot, one: Genes, other: Genes, rng: np.random.Generator) -> ChannelMap:
        a, b = array_of(one[spot.text]), array_of(other[spot.text])
        if spot.family == ChannelRotation.__name__:
            return self._turned(spot, a, b, rng)
        tables = [np.abs(m).argmax(1) for m in (a, b)]
        signs = [m[np.arange(len(m)), t] for m, t in zip((a, b), tables)]
        table = order_crossover(tables[0], tables[1], rng)
        sign = np.where(rng.random(len(table)) < 0.5, *signs)
        for _ in range(rng.poisson(self.MUTATIONS)):
            i, j = rng.integers(0, len(table), 2)
            table[[i, j]] = table[[j, i]]
            sign[i] *= -1.0 if spot.signed and rng.random() < 0.5 else 1.0
        matrix = np.zeros_like(a)
        matrix[np.arange(len(table)), table] = sign
        return spot.round(matrix)

    def _turned(self, spot: Spot, a: Matrix, b: Matrix, rng: np.random.Generator) -> ChannelMap:
        matrix = np.zeros_like(a)
        for block in spot.blocks():
            parent = a if rng.random() < 0.5 else b
            shake = 0.2 * rng.standard_normal(parent[block, block].shape) * (rng.random() < 0.2)
            matrix[block, block] = parent[block, block] + shake
        return spot.round(matrix)
