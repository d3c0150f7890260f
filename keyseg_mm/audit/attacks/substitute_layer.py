"""A substitute key layer at every point, learned jointly."""

from __future__ import annotations

from functools import partial

import numpy as np

from keyseg_mm.audit.attack import Attack, Attempt, Progress, register
from keyseg_mm.audit.attacks._learn import FreeMatrix, StandIn
from keyseg_mm.audit.attacks._spots import firing_order, spots_of
from keyseg_mm.audit.attacks._substitute import choose, halves, learn, tenth
from keyseg_mm.audit.case import Case

LR = 0.02


@register
class SubstituteLayer(Attack):
    """Put a learnable c x c matrix where each encryptor would be, and train nothing but these.

    Needs labelled images. All weights stay as they are, so few images suffice: what is learned is only the map that the
    weights expect. A fifth of the steps tries two starts, the identity (nothing is encrypted) and the uniform matrix
    (every order is as likely); the better goes on with Adam on the cross entropy. In the end each matrix is rounded to
    the nearest map of the stamp's family, and the rounded or the free maps are kept, as photos kept back decide.

    Costs one forward and backward pass per step, like training.
    """

    name = 'substitute-layer'
    title = 'substitute key layers, jointly'
    needs = frozenset({'labelled'})
    source = 'Chen et al., CVPR 2023 (ambiguity attack on passports)'
    cost = 'as long as training for the same steps'

    def run(self, case: Case, progress: Progress) -> Attempt:
        assert case.labelled is not None
        clock, spots = case.budget.clock(), firing_order(case, spots_of(case))
        photos, held = halves(case)
        steps, tries = case.budget.steps, []
        first = max(1, steps // 10)
        for at, start in enumerate(('identity', 'uniform')):
            stand_ins: list[StandIn] = [FreeMatrix(spot, start) for spot in spots]
            losses = learn(case, stand_ins, stand_ins, photos, first, LR, clock, partial(tenth, progress, at))
            tries.append((float(np.mean(losses[-5:])) if losses else np.inf, start, stand_ins))
        _, start, stand_ins = min(tries, key=lambda item: item[0])
        rest = steps - clock.steps
        losses = learn(case, stand_ins, stand_ins, photos, rest, LR, clock, lambda s, w: progress(0.2 + 0.8 * s, w))
        guesses, words = choose(case, spots, stand_ins, held)
        trail = [{'step': at, 'loss': value} for at, value in enumerate(losses)]
        return Attempt(guesses, None, len(case.labelled), clock.out_of_time, f'started from {start}; {words}', trail)
