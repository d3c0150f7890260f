"""Controls: what the attacker gets without the protected checkpoint, on the same photos with the same budget.

They are run, budgeted and scored exactly as attacks are. An attack is worth what it gets above the best of them.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from keyseg_mm.audit.engine.attack import Attack, Attempt, Progress
from keyseg_mm.audit.engine.grants import granted
from keyseg_mm.audit.engine.targets import ALL
from keyseg_mm.audit.model.case import Case, logits
from keyseg_mm.audit.model.training import Recipe, train
from keyseg_mm.errors import KeysegError

CONTROLS: dict[str, type[Attack]] = {}


def control(cls: type[Attack]) -> type[Attack]:
    """Class decorator: enter a control into :data:`CONTROLS`."""
    CONTROLS[cls.name] = cls
    return cls


class ConstantModel(nn.Module):
    """Says one class everywhere.

    Args:
        label: the class.
        num_classes: number of classes.
    """

    def __init__(self, label: int, num_classes: int) -> None:
        super().__init__()
        self.label, self.num_classes = label, num_classes

    def forward(self, images: Tensor) -> Tensor:
        """Scores (B, classes, H, W) of images (B, 3, H, W)."""
        scores = images.new_zeros(len(images), self.num_classes, *images.shape[2:])
        scores[:, self.label] = 1.0
        return scores


@control
class PublicAsIs(Attack):
    """The public weights as they are, without any training; layers that they lack keep their initial weights."""

    name = 'public-as-is'
    title = 'public weights as they are'
    needs = frozenset({'public'})
    against = ALL
    source = 'the public model'
    cost = 'nothing'
    kind = 'retrain'

    def run(self, case: Case, progress: Progress) -> Attempt:
        model, lacking = public_model(case)
        progress(1.0, 'loaded')
        return Attempt(model=model, notes=f'{lacking} tensors are not in the public file' if lacking else '')


@control
class FromScratch(Attack):
    """Train the plain architecture from its initial weights; the config is public, so anybody can."""

    name = 'from-scratch'
    title = 'training from scratch'
    needs = frozenset({'labelled'})
    against = ALL
    source = 'every paper'
    cost = 'one training within the budget'
    kind = 'retrain'
    transfers = True
    #: Peak learning rate. From initial weights AdamW learns fast at this rate in the few steps of a budget.
    lr: ClassVar[float] = 3e-3

    def run(self, case: Case, progress: Progress) -> Attempt:
        return _trained(case.build(), case, self.lr, progress)


@control
class FromScratchSlow(FromScratch):
    """The same at a third of the learning rate, for architectures that the higher one is too much for."""

    name = 'from-scratch-slow'
    title = 'training from scratch, slower'
    lr = 1e-3


@control
class FromPublic(Attack):
    """Fine-tune the public weights: what a competitor would do who has no use for the protected file."""

    name = 'from-public'
    title = 'training from public weights'
    needs = frozenset({'labelled', 'public'})
    against = ALL
    source = 'every paper'
    cost = 'one training within the budget'
    kind = 'retrain'
    transfers = True
    lr: ClassVar[float] = 1e-3

    def run(self, case: Case, progress: Progress) -> Attempt:
        model, lacking = public_model(case)
        attempt = _trained(model, case, self.lr, progress)
        attempt.notes = f'{lacking} tensors are not in the public file' if lacking else ''
        return attempt


@control
class FromPublicSlow(FromPublic):
    """The same at a third of the learning rate, which keeps more of what the public weights know."""

    name = 'from-public-slow'
    title = 'training from public weights, slower'
    lr = 3e-4


def public_model(case: Case) -> tuple[nn.Module, int]:
    """The plain architecture with the public weights, and how many tensors they lack (other names or shapes).

    Raises:
        KeysegError: the public weights share no tensor with the architecture.
    """
    public = granted(case.public)
    model = case.build()
    own = model.state_dict()
    known = {name: value for name, value in public.items() if name in own and own[name].shape == value.shape}
    if not known:
        raise KeysegError('the public weights have no tensor in common with this architecture; give others')
    model.load_state_dict({**own, **known})
    return model.eval(), len(own) - len(known)


def _trained(model: nn.Module, case: Case, lr: float, progress: Progress) -> Attempt:
    labelled = granted(case.labelled)
    recipe = Recipe(case.budget.steps, lr)
    course = train(model, labelled, recipe, case.budget.clock(), progress, case.seed)
    with torch.no_grad():
        broken = not torch.isfinite(logits(model, labelled.images[:1])).all()
    words = 'the training diverged' if broken else ''
    return Attempt({}, model, len(labelled), course.exhausted, words, course.trail)
