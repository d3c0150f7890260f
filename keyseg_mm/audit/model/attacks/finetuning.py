"""Training the protected weights on, on labelled photos."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn

from keyseg_mm.audit.engine.budget import Progress
from keyseg_mm.audit.model.attack import ALL, Attack, Attempt, Case, LabelledPhotos, register
from keyseg_mm.audit.model.forward import logits
from keyseg_mm.audit.model.training import Recipe, train


class FineTuning(Attack):
    """Train a model on the labelled images; as an attack, one of the protected weights without the encryptors."""

    needs = frozenset({LabelledPhotos})
    against = ALL
    kind = 'retrain'
    cost = 'a training of the given steps'
    #: Peak learning rate.
    lr: ClassVar[float] = 1e-3

    def start(self, case: Case) -> nn.Module:
        """What is trained on."""
        return case.model()

    def names(self, model: nn.Module) -> set[str]:
        """Of the parameters that learn."""
        return {name for name, _ in model.named_parameters()}

    def run(self, case: Case, progress: Progress) -> Attempt:
        model, photos = self.start(case), case[LabelledPhotos]
        recipe = Recipe(case.budget.steps, self.lr, self.names(model).__contains__)
        course = train(model, photos, recipe, case.budget.clock(), progress, case.seed)
        with torch.no_grad():
            broken = not torch.isfinite(logits(model, photos.images[:1])).all()
        return Attempt(model=model, exhausted=course.exhausted, notes='the training diverged' if broken else '')


@register
class FineTuneAll(FineTuning):
    """Train all of the protected weights on the labelled images, without the key.

    What the lock left in place (unlocked layers, norm statistics, the weights' scale) is a better start than none.
    Any guess at a point could be absorbed into the reader's weights, so no key is looked for.
    """

    name = 'finetune-all'
    title = 'fine-tuning, all weights'
    source = 'every paper on access control; Ito et al., arXiv 2206.05422'


@register
class FineTuneHead(FineTuning):
    """Train the decode head (auxiliary heads too) on the labelled images, and freeze the rest.

    Does well with very few images where only late points are protected: a permuted map is as good as any to a new head.
    """

    name = 'finetune-head'
    title = 'fine-tuning, head only'
    source = 'ADALOC, arXiv 2511.18772'
    cost = 'a training, less the backward pass through the backbone'
    lr = 3e-3

    def names(self, model: nn.Module) -> set[str]:
        return head_names(model)


@register
class FineTuneNorm(FineTuning):
    """Train the scales, shifts and statistics of the normalisation layers, and freeze the rest.

    Scrambled layers give maps of the wrong mean and scale, which norm layers can mend without touching a convolution.
    In a model without norm layers its head learns instead.
    """

    name = 'finetune-norm'
    title = 'fine-tuning, norm layers only'
    source = 'test-time adaptation by batch norm: Wang et al., Tent, ICLR 2021'
    lr = 5e-3

    def names(self, model: nn.Module) -> set[str]:
        norms = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm2d)
        layers = [(n, m) for n, m in model.named_modules() if isinstance(m, norms)]
        return {f'{n}.{p}' for n, m in layers for p, _ in m.named_parameters()} or head_names(model)


def head_names(model: nn.Module) -> set[str]:
    """Names of the parameters of the decode head, or, in a model without one, of its last layer that has any."""
    found = {n for n, _ in model.named_parameters() if n.split('.')[0] in ('decode_head', 'auxiliary_head')}
    if found:
        return found
    owners = [n for n, m in model.named_modules() if any(True for _ in m.parameters(recurse=False))]
    return {n for n, _ in model.named_parameters() if n.rpartition('.')[0] == owners[-1]}
