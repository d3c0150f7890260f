"""Training the protected weights on: on labels, on other classes, or on the answers of an authorised model."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from keyseg_mm.audit.engine.budget import Progress
from keyseg_mm.audit.model.attack import (
    ALL,
    Attack,
    Attempt,
    Case,
    LabelledPhotos,
    Oracle,
    OtherClasses,
    Photos,
    Tuning,
    register,
)
from keyseg_mm.audit.model.forward import logits
from keyseg_mm.audit.model.training import Recipe, train


def head_names(model: nn.Module) -> set[str]:
    """Names of the parameters of the decode head, or, in a model without one, of its last layer that has any."""
    found = {n for n, _ in model.named_parameters() if n.split('.')[0] in ('decode_head', 'auxiliary_head')}
    if found:
        return found
    owners = [n for n, m in model.named_modules() if any(True for _ in m.parameters(recurse=False))]
    return {n for n, _ in model.named_parameters() if n.rpartition('.')[0] == owners[-1]}


def norm_names(model: nn.Module) -> set[str]:
    """Names of the parameters of all normalisation layers."""
    kinds = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm2d)
    return {f'{n}.{p}' for n, m in model.named_modules() if isinstance(m, kinds) for p, _ in m.named_parameters()}


class FineTuning(Tuning):
    """Load the protected weights, leave the encryptors out, and train on the labelled images."""

    needs = frozenset({LabelledPhotos})
    against = ALL
    kind = 'retrain'
    transfers = True
    cost = 'a training of the given steps'
    lr: ClassVar[float] = 1e-3

    def names(self, model: nn.Module) -> set[str]:
        """Of the parameters that learn."""
        return {name for name, _ in model.named_parameters()}

    def tune(self, model: nn.Module, case: Case, progress: Progress) -> Attempt:
        photos, learn = case[LabelledPhotos], self.names(model) | set(case.classifier)
        recipe = Recipe(case.budget.steps, self.lr, learn.__contains__)
        course = train(model, photos, recipe, case.budget.clock(), progress, case.seed)
        return Attempt(model=model, images_used=len(photos), exhausted=course.exhausted)


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
        return norm_names(model) or head_names(model)


@register
class TransferFast(FineTuneAll):
    """Train all of the protected weights for the attacker's own classes, at the rate of training from scratch.

    The classifier starts from nothing there, and what a lock has scrambled is unlearnt before it is of use, so a rate
    that would ruin a good start does well here; and the controls that train from scratch have it too.
    """

    name = 'transfer-fast'
    title = 'fine-tuning, all weights, faster'
    needs = frozenset({LabelledPhotos, OtherClasses})
    source = 'transfer learning: Yosinski et al., NeurIPS 2014; Kornblith et al., CVPR 2019'
    lr = 3e-3


@register
class TransferHead(FineTuneHead):
    """Train the decode head for the attacker's own classes on the frozen backbone, as fast as substitute layers learn.

    It is what a new head makes of the features as they are; beside the substitute layers it tells what the maps add.
    """

    name = 'transfer-head'
    title = 'fine-tuning, head only, faster'
    needs = frozenset({LabelledPhotos, OtherClasses})
    source = 'linear probing in transfer learning: Kornblith et al., CVPR 2019'
    lr = 0.01


@register
class Distillation(Attack):
    """Train the protected weights to give the answers of an authorised model that may be queried.

    The loss is the Kullback-Leibler divergence of the scores at every pixel, at a temperature of 2, so that what the
    oracle thinks of the other classes teaches too. No lock of the weights can prevent it.
    """

    name = 'distillation'
    title = 'distillation from an authorised oracle'
    needs = frozenset({Oracle, Photos})
    against = ALL
    source = 'Hinton et al., arXiv 1503.02531; literature on TEE-shielded partition'
    cost = 'a training, and a query for each crop'
    kind = 'retrain'
    LR, TEMPERATURE = 1e-3, 2.0

    def run(self, case: Case, progress: Progress) -> Attempt:
        images, oracle, hot = case[Photos].images, case[Oracle].answer, self.TEMPERATURE

        def loss(model: nn.Module, batch: Tensor, labels: Tensor) -> Tensor:
            with torch.no_grad():
                wanted = F.log_softmax(oracle(batch) / hot, 1)
            given = F.log_softmax(logits(model, batch) / hot, 1)
            return F.kl_div(given, wanted, reduction='none', log_target=True).sum(1).mean() * hot**2

        # the routine wants labels; this loss does not look at them
        photos = LabelledPhotos(images, torch.zeros_like(images[:, 0], dtype=torch.int64))
        model, recipe = case.model(), Recipe(case.budget.steps, self.LR, loss=loss)
        course = train(model, photos, recipe, case.budget.clock(), progress, case.seed)
        return Attempt(model=model, images_used=len(images), exhausted=course.exhausted)
