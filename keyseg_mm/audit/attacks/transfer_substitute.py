"""Substitute key layers learned together with a new head, for other classes."""

from __future__ import annotations

import numpy as np
from torch import nn

from keyseg_mm.audit.attack import Attack, Attempt, Progress, register
from keyseg_mm.audit.attacks._finetune import head_names
from keyseg_mm.audit.attacks._learn import FreeMatrix, place
from keyseg_mm.audit.attacks._spots import firing_order, spots_of
from keyseg_mm.audit.case import Budget, Case, Clock
from keyseg_mm.audit.training import train

LR = 1e-2
_STAND_INS = 'stand_ins'


@register
class TransferSubstitute(Attack):
    """Put a learnable c x c matrix where each encryptor would be, and train these and the head for other classes.

    Needs labelled images of another data set. The backbone stays as it is, maps and head learn: where the maps come
    near the key, the thief has the backbone's features as the key's holder has them. As in the attack on the model's
    own task, a fifth of the steps tries two starts, the identity and the uniform matrix, and the better goes on. The
    maps stay free; rounded ones are handed in only to tell how much of the key they hold.

    Costs a training.
    """

    name = 'transfer-substitute'
    title = 'substitute key layers and a new head'
    needs = frozenset({'labelled', 'classifier'})
    source = 'Chen et al., CVPR 2023 (ambiguity attack on passports), with a head of its own'
    cost = 'a training of the given steps'
    kind = 'retrain'
    transfers = True

    def run(self, case: Case, progress: Progress) -> Attempt:
        assert case.labelled is not None
        clock, first = case.budget.clock(), max(1, case.budget.steps // 10)
        learns, tries = head_names(case.build()) | set(case.classifier or ()), []
        for at, start in enumerate(('identity', 'uniform')):
            model, stand_ins = _prepared(case, start)
            losses = _learn(case, model, learns, first, clock, _part(progress, 0.1 * at, 0.1))
            tries.append((float(np.mean(losses[-5:])) if losses else np.inf, start, model, stand_ins))
        _, start, model, stand_ins = min(tries, key=lambda item: item[0])
        rest = case.budget.steps - clock.steps
        losses = _learn(case, model, learns, rest, clock, _part(progress, 0.2, 0.8))
        trail = [{'step': at, 'loss': value} for at, value in enumerate(losses)]
        guesses = {s.spot.text: s.rounded() for s in stand_ins}
        words = f'started from {start}; the maps are scored as learnt, and rounded to compare them with the key'
        return Attempt(guesses, model, len(case.labelled), clock.out_of_time, words, trail)


def _prepared(case: Case, start: str) -> tuple[nn.Module, list[FreeMatrix]]:
    """The case's model with stand-ins hooked to it, which are modules of it too, so that they can be trained."""
    stand_ins = [FreeMatrix(spot, start) for spot in firing_order(case, spots_of(case))]
    model = case.model()
    place(case, model, list(stand_ins))
    model.add_module(_STAND_INS, nn.ModuleList(stand_ins).to(next(iter(case.weights.values())).device))
    return model, stand_ins


def _learn(case: Case, model: nn.Module, learns: set[str], steps: int, clock: Clock, progress: Progress) -> list[float]:
    """Train the stand-ins, and what else is named, for some steps of the clock; the losses."""
    assert case.labelled is not None
    left = Budget(steps, max(0.0, case.budget.seconds - clock.seconds))
    course = train(
        model,
        case.labelled,
        steps,
        LR,
        lambda name, _: name in learns or name.startswith(_STAND_INS),
        progress,
        case.seed + clock.steps,
        left,
    )
    clock.tick(course.steps)
    return course.losses


def _part(progress: Progress, start: float, size: float) -> Progress:
    """Progress of a part of the whole."""
    return lambda share, words: progress(start + size * share, words)
