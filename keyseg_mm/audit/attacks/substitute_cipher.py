"""A learnable stand-in for the encryption of the images."""

from __future__ import annotations

import copy

from keyseg_mm.audit.attack import Attack, Attempt, Progress, register
from keyseg_mm.audit.attacks._fronts import front_for
from keyseg_mm.audit.attacks._learn import cross_entropy, split
from keyseg_mm.audit.case import Budget, Case, Photos
from keyseg_mm.audit.front import Fronted
from keyseg_mm.audit.kinds import IMAGES
from keyseg_mm.audit.training import Course, train


@register
class SubstituteCipher(Attack):
    """Put something learnable where the images would be encrypted, and train nothing but that.

    Needs labelled plain images. The weights stay as they are: only what they expect of a block is learnt, an affine map
    of a block's values for SHF and for patch embeddings, scales and offsets for NP, and a table of bytes with a choice
    of places for FFX. A fifth of the steps tries two starts, nothing encrypted and every encryption as likely; the one
    that does better on photos kept back goes on.

    Costs a training.
    """

    name = 'substitute-cipher'
    title = 'a learnt substitute for the encryption of images'
    needs = frozenset({'labelled'})
    against = frozenset({IMAGES})
    kind = 'retrain'
    source = 'Chen et al., CVPR 2023 (ambiguity attack on passports), on images'
    cost = 'as long as training for the same steps'
    LR = 0.02

    def run(self, case: Case, progress: Progress) -> Attempt:
        assert case.labelled is not None and case.images is not None
        clock, make = case.budget.clock(), front_for(case.images)
        photos, held = split(case.labelled, case.seed)
        tries, steps = [], max(1, case.budget.steps // 10)
        for start in ('identity', 'uniform'):
            model = Fronted(case.model(), make(start))
            self._learn(model, photos, steps, case, clock.seconds, progress)
            clock.tick(min(steps, case.budget.steps - clock.steps))
            tries.append((float(cross_entropy(case, model, held).detach()), start, model))
        value, start, model = min(tries, key=lambda item: item[0])
        before = copy.deepcopy(model.state_dict())
        course = self._learn(model, photos, case.budget.steps - clock.steps, case, clock.seconds, progress)
        after = float(cross_entropy(case, model, held).detach())
        if not after <= value:  # a training that diverged gives nan
            model.load_state_dict(before)
        words = (
            f'started from {start}; held-back cross entropy {value:.2f} after a tenth of the steps, {after:.2f} at last'
        )
        trail = [{'step': at, 'loss': loss} for at, loss in enumerate(course.losses)]
        return Attempt({}, model, len(case.labelled), course.exhausted, words, trail)

    def _learn(
        self, model: Fronted, photos: Photos, steps: int, case: Case, spent: float, progress: Progress
    ) -> Course:
        left = Budget(steps, case.budget.seconds - spent)
        return train(
            model,
            photos,
            steps,
            self.LR,
            lambda n, _: n.startswith('change.'),
            progress,
            case.seed,
            left,
            weight_decay=0.0,
        )
