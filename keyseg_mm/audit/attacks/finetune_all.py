"""Fine-tuning of all weights."""

from __future__ import annotations

from torch import nn

from keyseg_mm.audit.attack import register
from keyseg_mm.audit.attacks._finetune import FineTuning


@register
class FineTuneAll(FineTuning):
    """Train all of the protected weights on the labelled images, without the key.

    Needs labelled images. What the lock left in place (unlocked layers, norm statistics, the weights' scale) is a
    better start than none; compared with training from scratch at the same budget it tells how much of the model's
    worth still leaks. Any guess at a point could be absorbed into the reader's weights, so no key is looked for.

    Costs a training.
    """

    name = 'finetune-all'
    title = 'fine-tuning, all weights'
    source = 'every paper on access control; Ito et al., arXiv 2206.05422'

    def learns(self, model: nn.Module, name: str) -> bool:
        return True
