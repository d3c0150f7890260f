"""Soft permutations by Sinkhorn's iterations as substitute keys."""

from __future__ import annotations

import numpy as np

from keyseg_mm.audit.attack import Attack, Attempt, Progress, register
from keyseg_mm.audit.attacks._learn import SoftPermutation, StandIn
from keyseg_mm.audit.attacks._spots import firing_order, spots_of
from keyseg_mm.audit.attacks._substitute import choose, halves, learn
from keyseg_mm.audit.case import Case

LR = 0.03


@register
class SubstituteSinkhorn(Attack):
    """Learn a doubly stochastic matrix at every point and cool it down to a permutation.

    Needs labelled images. Scores of c x c become doubly stochastic by Sinkhorn's iterations, softly at first and nearly
    hard in the end, so that the search stays in the hull of the key's own family and the final rounding loses little.
    Signs are soft signs; a rotation is learned as a matrix exponential within its blocks. All points learn together.

    Costs one forward and backward pass per step, and 20 normalisations of each c x c table.
    """

    name = 'substitute-sinkhorn'
    title = 'soft permutations by Sinkhorn'
    needs = frozenset({'labelled'})
    source = 'Pena et al., Sinkhorn Re-Basin, CVPR 2023'
    cost = 'as long as training for the same steps'

    def run(self, case: Case, progress: Progress) -> Attempt:
        assert case.labelled is not None
        clock, spots = case.budget.clock(), firing_order(case, spots_of(case))
        photos, held = halves(case)
        rng = np.random.default_rng(case.seed)
        stand_ins: list[StandIn] = [SoftPermutation(spot, rng) for spot in spots]
        losses = learn(case, stand_ins, stand_ins, photos, case.budget.steps, LR, clock, progress)
        guesses, words = choose(case, spots, stand_ins, held)
        trail = [{'step': at, 'loss': value} for at, value in enumerate(losses)]
        return Attempt(guesses, None, len(case.labelled), clock.out_of_time, words, trail)
