"""Fine-tuning of the protected weights: what its three variants share."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from keyseg_mm.audit.attack import Attack, Attempt, Progress
from keyseg_mm.audit.case import Case
from keyseg_mm.audit.kinds import ALL
from keyseg_mm.audit.training import train


class FineTuning(Attack):
    """Load the protected weights, leave the encryptors out, and train on the labelled images."""

    needs = frozenset({'labelled'})
    against = ALL
    kind = 'retrain'
    transfers = True
    cost = 'a training of the given steps'
    LR: ClassVar[float] = 1e-3

    def learns(self, model: nn.Module, name: str) -> bool:
        """Whether a parameter learns."""
        raise NotImplementedError

    def run(self, case: Case, progress: Progress) -> Attempt:
        return self.tune(case.model(), case, progress)

    def tune(self, model: nn.Module, case: Case, progress: Progress) -> Attempt:
        """Train a model made from the case's weights: the attacker's, or the key holder's with his encryptors on."""
        assert case.labelled is not None
        clock, always = case.budget.clock(), set(case.classifier or ())
        course = train(
            model,
            case.labelled,
            case.budget.steps,
            self.LR,
            lambda name, _: name in always or self.learns(model, name),
            progress,
            case.seed,
            case.budget,
        )
        trail = [{'step': at, 'loss': loss} for at, loss in enumerate(course.losses)]
        words = f'{course.steps} steps in {clock.seconds:.0f} s'
        return Attempt({}, model, len(case.labelled), course.exhausted, words, trail)


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
