"""Inversion of stored statistics, then fine-tuning from what it found."""

from __future__ import annotations

import dataclasses

from keyseg_mm.audit.attack import Attack, Attempt, Progress, register
from keyseg_mm.audit.attacks.norm_inversion import NormInversion
from keyseg_mm.audit.case import Budget, Case
from keyseg_mm.audit.training import train


@register
class NormInversionTuned(Attack):
    """Repair what inversion can repair, and fine-tune the rest.

    Needs labelled images; unlabelled ones too if there are any, else the labelled ones serve for both. A partly right
    key is a better start for fine-tuning than none: layers that were recovered work again, and only the others have to
    be learned anew. Half of the seconds go to the inversion.

    Costs what both cost.
    """

    name = 'norm-inversion-tuned'
    title = 'inversion of norm statistics, then fine-tuning'
    needs = frozenset({'labelled'})
    source = 'both: activation matching in Git Re-Basin, arXiv 2209.04836, and fine-tuning'
    cost = 'an inversion and a training'
    kind = 'retrain'
    LR = 1e-3

    def run(self, case: Case, progress: Progress) -> Attempt:
        assert case.labelled is not None
        clock, budget = case.budget.clock(), case.budget
        unlabelled = case.unlabelled or case.labelled.unlabelled()
        half = dataclasses.replace(case, unlabelled=unlabelled, budget=Budget(budget.steps, budget.seconds / 2))
        found = NormInversion().run(half, lambda share, words: progress(share / 2, words))
        model = case.model(found.guesses)
        rest = Budget(budget.steps, max(budget.seconds - clock.seconds, 1.0))

        def second_half(share: float, words: str) -> None:
            progress(0.5 + share / 2, words)

        course = train(model, case.labelled, budget.steps, self.LR, progress=second_half, seed=case.seed, budget=rest)
        used = len(case.labelled) if case.unlabelled is None else len(case.labelled) + len(unlabelled)
        trail = [*found.trail, *({'step': at, 'loss': loss} for at, loss in enumerate(course.losses))]
        words = f'{found.notes}; then {course.steps} steps'
        return Attempt({}, model, used, course.exhausted, words, trail)
