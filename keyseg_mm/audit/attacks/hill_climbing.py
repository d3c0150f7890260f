"""Hill climbing on the key."""

from __future__ import annotations

import numpy as np

from keyseg_mm.audit.attack import Attack, Attempt, Progress, register
from keyseg_mm.audit.attacks._learn import Fitness
from keyseg_mm.audit.attacks._search import climb
from keyseg_mm.audit.attacks._spots import firing_order, spots_of
from keyseg_mm.audit.case import Case
from keyseg_mm.maps.base import ChannelMap


@register
class HillClimbing(Attack):
    """Swap two channels of the guess, or flip a sign, and keep what lowers the cross entropy.

    Needs labelled images. Starts from no key at all or a random key, whichever is better, and goes round the points.
    The gradient by the guess's matrix ranks all swaps and flips of a point at once, to first order, so that the few
    worth a forward pass are tried first. If it comes to rest it begins anew from another random key, and keeps the
    best. The fitness is the cross entropy, which moves where mIoU stands still.

    Costs a forward pass over at most 8 images for each try.
    """

    name = 'hill-climbing'
    title = 'hill climbing on the key'
    needs = frozenset({'labelled'})
    source = 'MaungMaung and Kiya, arXiv 2109.00224; the breaks of HPNN'
    cost = 'a forward pass over a few images for each try'
    IMAGES, STARTS = 8, 4

    def run(self, case: Case, progress: Progress) -> Attempt:
        assert case.labelled is not None
        clock, spots, rng = case.budget.clock(), firing_order(case, spots_of(case)), np.random.default_rng(case.seed)
        photos = case.labelled.take(slice(0, self.IMAGES))
        fitness = Fitness(case, photos, spots)
        ends, curve, ended = [], [], False
        identity: dict[str, ChannelMap] = {s.text: s.round(np.eye(s.channels)) for s in spots}
        for at in range(self.STARTS):
            random = {s.text: s.random(rng) for s in spots}
            start = min((identity, random), key=fitness) if at == 0 else random
            guesses, trail, ended = climb(fitness, spots, start, clock, rng, progress)
            ends.append((fitness(guesses), guesses))
            curve += [{'start': at, **point} for point in trail]
            if ended:
                break
        lowest, guesses = min(ends, key=lambda end: end[0])
        words = f'{clock.steps} tries from {len(ends)} starts, cross entropy {lowest:.3f}'
        return Attempt(guesses, None, len(photos), ended, words, curve)
