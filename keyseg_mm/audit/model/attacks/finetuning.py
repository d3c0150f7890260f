"""Training on labelled photos: attacks, from the protected weights, and controls, from what is to be had without them.

Controls are run, budgeted and scored exactly as attacks are. An attack is worth what it gets above the best of them.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn

from keyseg_mm.audit.engine.attack import Progress
from keyseg_mm.audit.model.attack import (
    ALL,
    ATTACKS,
    CONTROLS,
    Attack,
    Attempt,
    Case,
    Ciphertext,
    LabelledPhotos,
    PublicWeights,
)
from keyseg_mm.audit.model.forward import logits
from keyseg_mm.audit.model.training import Recipe, train


class FineTuning(Attack):
    """Train a model on the labelled images; as an attack, one of the protected weights without the encryptors."""

    needs = frozenset({LabelledPhotos})
    against = ALL
    kind = 'retrain'
    source = 'every paper'
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


@ATTACKS.register
class FineTuneAll(FineTuning):
    """Train all of the protected weights on the labelled images, without the key.

    What the lock left in place (unlocked layers, norm statistics, the weights' scale) is a better start than none.
    Any guess at a point could be absorbed into the reader's weights, so no key is looked for.
    """

    name, title = 'finetune-all', 'fine-tuning, all weights'
    source = 'every paper on access control; Ito et al., arXiv 2206.05422'


@ATTACKS.register
class FineTuneHead(FineTuning):
    """Train the decode head (auxiliary heads too) on the labelled images, and freeze the rest.

    Does well with very few images where only late points are protected: a permuted map is as good as any to a new head.
    """

    name, title, lr = 'finetune-head', 'fine-tuning, head only', 3e-3
    source = 'ADALOC, arXiv 2511.18772'
    cost = 'a training, less the backward pass through the backbone'

    def names(self, model: nn.Module) -> set[str]:
        return head_names(model)


@ATTACKS.register
class FineTuneNorm(FineTuning):
    """Train the scales, shifts and statistics of the normalisation layers, and freeze the rest.

    Scrambled layers give maps of the wrong mean and scale, which norm layers can mend without touching a convolution.
    In a model without norm layers its head learns instead.
    """

    name, title, lr = 'finetune-norm', 'fine-tuning, norm layers only', 5e-3
    source = 'test-time adaptation by batch norm: Wang et al., Tent, ICLR 2021'

    def names(self, model: nn.Module) -> set[str]:
        norms = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm2d)
        layers = [(n, m) for n, m in model.named_modules() if isinstance(m, norms)]
        return {f'{n}.{p}' for n, m in layers for p, _ in m.named_parameters()} or head_names(model)


def head_names(model: nn.Module) -> set[str]:
    """Names of the parameters of the decode head, or, in a model without one, of its last layer that has any."""
    names = [name for name, _ in model.named_parameters()]
    last = names[-1].rpartition('.')[0]
    return {n for n in names if n.split('.')[0] in ('decode_head', 'auxiliary_head')} or {
        n for n in names if n.rpartition('.')[0] == last
    }


@CONTROLS.register
class PublicAsIs(Attack):
    """The public weights as they are, without any training; layers that they lack keep their initial weights."""

    name, title = 'public-as-is', 'public weights as they are'
    needs = frozenset({PublicWeights})
    against = ALL
    kind = 'retrain'
    source, cost = 'the public model', 'nothing'

    def run(self, case: Case, progress: Progress) -> Attempt:
        model, lacking = public_model(case)
        progress(1.0, 'loaded')
        return Attempt(model=model, notes=f'{lacking} tensors are not in the public file' if lacking else '')


@CONTROLS.register
class FromScratch(FineTuning):
    """Train the plain architecture from its initial weights; the config is public, so anybody can.

    From there AdamW learns fast at this learning rate in the few steps of a budget.
    """

    name, title, lr = 'from-scratch', 'training from scratch', 3e-3

    def start(self, case: Case) -> nn.Module:
        return case.build()


@CONTROLS.register
class FromScratchSlow(FromScratch):
    """The same at a third of the learning rate, for architectures that the higher one is too much for."""

    name, title, lr = 'from-scratch-slow', 'training from scratch, slower', 1e-3


@CONTROLS.register
class FromPublic(FineTuning):
    """Fine-tune the public weights: what a competitor would do who has no use for the protected file."""

    name, title = 'from-public', 'training from public weights'
    needs = frozenset({LabelledPhotos, PublicWeights})

    def start(self, case: Case) -> nn.Module:
        return public_model(case)[0]


@CONTROLS.register
class FromPublicSlow(FromPublic):
    """The same at a third of the learning rate, which keeps more of what the public weights know."""

    name, title, lr = 'from-public-slow', 'training from public weights, slower', 3e-4


@CONTROLS.register
class FromCiphertext(FineTuning):
    """Train the sealed file as it is, which by the cipher is worth no more than a random start.

    Its numbers have all magnitudes that floating point has, so each tensor gets the spread of initial weights, in the
    order of its own values.
    """

    name, title, lr = 'from-ciphertext', 'training from the sealed file as it is', FromScratch.lr
    needs = frozenset({LabelledPhotos, Ciphertext})
    source = 'whoever has a sealed file'

    def start(self, case: Case) -> nn.Module:
        model, noise = case.build(), case[Ciphertext].weights
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in noise and parameter.numel() > 1:
                    order = noise[name].flatten().double().nan_to_num().argsort()
                    parameter.view(-1)[order] = parameter.flatten().sort().values
        return model


def public_model(case: Case) -> tuple[nn.Module, int]:
    """The plain architecture with the public weights, and how many tensors they lack (other names or shapes)."""
    model = case.build()
    own = model.state_dict()
    public = case[PublicWeights].weights
    known = {name: value for name, value in public.items() if name in own and own[name].shape == value.shape}
    model.load_state_dict({**own, **known})
    return model.eval(), len(own) - len(known)
