"""Controls: what the attacker gets without the protected checkpoint, on the same photos with the same budget.

They are run, budgeted and scored exactly as attacks are. An attack is worth what it gets above the best of them.
"""

from __future__ import annotations

from torch import nn

from keyseg_mm.audit.engine.budget import Progress
from keyseg_mm.audit.model.attack import ALL, CONTROLS, Attack, Attempt, Case, LabelledPhotos, PublicWeights
from keyseg_mm.audit.model.attacks.finetuning import FineTuning


@CONTROLS.register
class PublicAsIs(Attack):
    """The public weights as they are, without any training; layers that they lack keep their initial weights."""

    name = 'public-as-is'
    title = 'public weights as they are'
    needs = frozenset({PublicWeights})
    against = ALL
    source = 'the public model'
    cost = 'nothing'
    kind = 'retrain'

    def run(self, case: Case, progress: Progress) -> Attempt:
        model, lacking = public_model(case)
        progress(1.0, 'loaded')
        return Attempt(model=model, notes=f'{lacking} tensors are not in the public file' if lacking else '')


@CONTROLS.register
class FromScratch(FineTuning):
    """Train the plain architecture from its initial weights; the config is public, so anybody can.

    From there AdamW learns fast at this learning rate in the few steps of a budget.
    """

    name = 'from-scratch'
    title = 'training from scratch'
    source = 'every paper'
    lr = 3e-3

    def start(self, case: Case) -> nn.Module:
        return case.build()


@CONTROLS.register
class FromScratchSlow(FromScratch):
    """The same at a third of the learning rate, for architectures that the higher one is too much for."""

    name = 'from-scratch-slow'
    title = 'training from scratch, slower'
    lr = 1e-3


@CONTROLS.register
class FromPublic(FineTuning):
    """Fine-tune the public weights: what a competitor would do who has no use for the protected file."""

    name = 'from-public'
    title = 'training from public weights'
    needs = frozenset({LabelledPhotos, PublicWeights})
    source = 'every paper'

    def start(self, case: Case) -> nn.Module:
        return public_model(case)[0]


@CONTROLS.register
class FromPublicSlow(FromPublic):
    """The same at a third of the learning rate, which keeps more of what the public weights know."""

    name = 'from-public-slow'
    title = 'training from public weights, slower'
    lr = 3e-4


def public_model(case: Case) -> tuple[nn.Module, int]:
    """The plain architecture with the public weights, and how many tensors they lack (other names or shapes)."""
    model = case.build()
    own = model.state_dict()
    public = case[PublicWeights].weights
    known = {name: value for name, value in public.items() if name in own and own[name].shape == value.shape}
    model.load_state_dict({**own, **known})
    return model.eval(), len(own) - len(known)
