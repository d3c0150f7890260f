"""Controls: what the attacker gets without the protected checkpoint, on the same photos with the same budget.

They are run, budgeted and scored exactly as attacks are. An attack is worth what it gets above the best of them.
"""

from __future__ import annotations

import torch
from torch import nn

from keyseg_mm.audit.engine.budget import Progress
from keyseg_mm.audit.model.attack import ALL, CONTROLS, Attack, Attempt, Case, Ciphertext, LabelledPhotos, PublicWeights
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


@CONTROLS.register
class FromCiphertext(FineTuning):
    """Train the sealed file as it is, which by the cipher is worth no more than a random start.

    Its numbers have all magnitudes that floating point has, so each tensor gets the spread of initial weights, in the
    order of its own values.
    """

    name = 'from-ciphertext'
    title = 'training from the sealed file as it is'
    needs = frozenset({LabelledPhotos, Ciphertext})
    source = 'whoever has a sealed file'
    lr = FromScratch.lr

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
