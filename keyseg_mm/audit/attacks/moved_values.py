"""Learning just the values that were moved."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from keyseg_mm.audit.attack import Attack, Attempt, Progress, register
from keyseg_mm.audit.attacks._learn import cross_entropy, hooked, split
from keyseg_mm.audit.case import Budget, Case, Photos
from keyseg_mm.audit.kinds import WEIGHTS
from keyseg_mm.audit.training import Course, train
from keyseg_mm.maps.order import places, raw


@register
class MovedValues(Attack):
    """Train the moved values only, from where they stand or from their mean.

    Needs labelled images, and a lock that moves a few values: which they are is known from the stamp and the
    magnitudes. All others are right, so few unknowns are left for the photos to tell. A fifth of the steps tries both
    starts; the one that does better on photos kept back goes on.

    Costs a training.
    """

    name = 'moved-values'
    title = 'training of the moved values alone'
    needs = frozenset({'labelled'})
    against = frozenset({WEIGHTS})
    kind = 'retrain'
    source = 'pruning and fine-tuning; as the adaptive attacks on AdvParams, arXiv 2105.13697'
    cost = 'a training of the given steps'
    LR = 1e-2

    @classmethod
    def possible(cls, case: Case) -> bool:
        few = any(t.transform['type'] == 'SelectiveEncryption' for t in case.plan.tensors)
        return few and super().possible(case)

    def run(self, case: Case, progress: Progress) -> Attempt:
        assert case.labelled is not None
        clock, tries = case.budget.clock(), []
        photos, held = split(case.labelled, case.seed)
        first = max(1, case.budget.steps // 10)
        for start in ('as they stand', 'mean'):
            model = case.model()
            masks = _set(model, case, start)
            self._learn(model, masks, photos, first, case, clock.seconds, progress)
            clock.tick(first)
            with torch.no_grad():
                tries.append((float(cross_entropy(case, model, held)), start, model, masks))
        _, start, model, masks = min(tries, key=lambda item: item[0])
        rest = case.budget.steps - clock.steps
        course = self._learn(model, masks, photos, rest, case, clock.seconds, progress)
        count = sum(int(mask.sum()) for mask in masks.values())
        words = f'{count} values, from {start}; {clock.steps + course.steps} steps'
        trail = [{'step': at, 'loss': loss} for at, loss in enumerate(course.losses)]
        return Attempt({}, model, len(case.labelled), course.exhausted, words, trail)

    def _learn(
        self,
        model: nn.Module,
        masks: dict[str, Tensor],
        photos: Photos,
        steps: int,
        case: Case,
        spent: float,
        progress: Progress,
    ) -> Course:
        parameters: dict[str, Any] = dict(model.named_parameters())
        handles = [parameters[n].register_hook(_only(mask)) for n, mask in masks.items() if n in parameters]
        left = Budget(steps, case.budget.seconds - spent)
        decay = 0.0  # which would move the others
        with hooked(handles):
            return train(
                model, photos, steps, self.LR, lambda n, _: n in masks, progress, case.seed, left, weight_decay=decay
            )


def _set(model: nn.Module, case: Case, start: str) -> dict[str, Tensor]:
    """Put the moved values of a model to a start; returns masks of them by the parameter's name."""
    masks, state = {}, model.state_dict()
    for entry in case.plan.tensors:
        values = state[entry.names[0]].reshape(-1)  # a view: writing to it writes to the model
        moved = places(raw(values), entry.count)
        if moved is None:
            continue
        mask = torch.zeros(len(values), dtype=torch.bool, device=values.device)
        mask[moved] = True
        masks[entry.names[0]] = mask.view(state[entry.names[0]].shape)
        if start != 'as they stand':
            values[moved] = values[moved].mean()
    return masks


def _only(mask: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda slope: slope * mask
