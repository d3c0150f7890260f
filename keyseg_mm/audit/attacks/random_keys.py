"""Random keys."""

from __future__ import annotations

import numpy as np

from keyseg_mm.audit.attack import Attack, Attempt, Progress, register
from keyseg_mm.audit.attacks._learn import Fitness
from keyseg_mm.audit.attacks._spots import spots_of
from keyseg_mm.audit.case import Case
from keyseg_mm.maps.base import ChannelMap


@register
class RandomKeys(Attack):
    """Draw keys at random; with labelled images keep the best of as many as the budget allows.

    Needs nothing. What a random key gives is the floor of every recovery; the best of many shows that trying keys is
    no way, or that the fitness hardly depends on the key.

    Costs one run over at most 8 images per key.
    """

    name = 'random-keys'
    title = 'random keys'
    source = 'every paper on access control; Ito et al., arXiv 2206.05422'
    cost = 'a forward pass for each key tried'
    IMAGES, KEYS = 8, 100

    def run(self, case: Case, progress: Progress) -> Attempt:
        clock, spots, rng = case.budget.clock(), spots_of(case), np.random.default_rng(case.seed)
        best: dict[str, ChannelMap] = {s.text: s.random(rng) for s in spots}
        if case.labelled is None:
            return Attempt(best, notes='one random key: nothing to choose by')
        photos = case.labelled.take(slice(0, self.IMAGES))
        fitness = Fitness(case, photos, spots)
        lowest, trail = fitness(best), []
        keys = min(self.KEYS, case.budget.steps)
        for at in range(1, keys):
            if not clock.tick():
                break
            guesses = {s.text: s.random(rng) for s in spots}
            value = fitness(guesses)
            if value < lowest:
                best, lowest = guesses, value
            trail.append({'tries': at, 'cross_entropy': lowest})
            progress(at / keys, f'{at} keys: {lowest:.2f}')
        return Attempt(best, None, len(photos), clock.out_of_time, f'best of {len(trail) + 1} keys', trail)
