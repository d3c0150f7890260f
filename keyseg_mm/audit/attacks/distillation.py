"""Distillation from an authorised oracle."""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from keyseg_mm.audit.attack import Attack, Attempt, Progress, register
from keyseg_mm.audit.case import Case, logits
from keyseg_mm.audit.kinds import ALL
from keyseg_mm.audit.training import train


@register
class Distillation(Attack):
    """Train the protected weights to give the answers of an authorised model.

    Needs an authorised model that answers queries with its scores, and images without labels. Starts from the
    protected weights, without the key; the loss is the Kullback-Leibler divergence of the scores at every pixel, at a
    temperature of 2, so that what the oracle thinks of the other classes teaches too. What no lock of the weights can
    prevent: the oracle gives the function away query by query.

    Costs a training and one query for each crop seen.
    """

    name = 'distillation'
    title = 'distillation from an authorised oracle'
    needs = frozenset({'oracle', 'unlabelled'})
    against = ALL
    source = 'Hinton et al., arXiv 1503.02531; literature on TEE-shielded partition'
    cost = 'a training, and a query for each crop'
    kind = 'retrain'
    LR, TEMPERATURE = 1e-3, 2.0

    def run(self, case: Case, progress: Progress) -> Attempt:
        assert case.unlabelled is not None and case.oracle is not None
        oracle, hot, images = case.oracle, self.TEMPERATURE, case.unlabelled.images

        def loss(model: nn.Module, batch: Tensor, labels: Tensor) -> Tensor:
            with torch.no_grad():
                wanted = F.log_softmax(oracle(batch) / hot, 1)
            given = F.log_softmax(logits(model, batch) / hot, 1)
            return F.kl_div(given, wanted, reduction='none', log_target=True).sum(1).mean() * hot**2

        model, clock = case.model(), case.budget.clock()
        # the routine wants labels; this loss does not look at them
        blank = torch.zeros(len(images), *images.shape[2:], dtype=torch.int64, device=images.device)
        photos = dataclasses.replace(case.unlabelled, labels=blank)
        steps = case.budget.steps
        course = train(model, photos, steps, self.LR, progress=progress, seed=case.seed, budget=case.budget, loss=loss)
        trail = [{'step': at, 'loss': value} for at, value in enumerate(course.losses)]
        words = f'{course.steps} steps in {clock.seconds:.0f} s'
        return Attempt({}, model, len(images), course.exhausted, words, trail)
