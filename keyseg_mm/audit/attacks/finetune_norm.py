"""Fine-tuning of the normalisation layers alone."""

from __future__ import annotations

from torch import nn

from keyseg_mm.audit.attack import register
from keyseg_mm.audit.attacks._finetune import FineTuning, head_names, norm_names


@register
class FineTuneNorm(FineTuning):
    """Train the scales, shifts and statistics of the normalisation layers, and freeze the rest.

    Needs labelled images. A cheap repair: scrambled layers give maps of the wrong mean and scale, which norm layers can
    mend without touching a convolution. In a model without norm layers its head learns instead.

    Costs a training.
    """

    name = 'finetune-norm'
    title = 'fine-tuning, norm layers only'
    source = 'test-time adaptation by batch norm: Wang et al., Tent, ICLR 2021'
    LR = 5e-3

    def learns(self, model: nn.Module, name: str) -> bool:
        return name in (norm_names(model) or head_names(model))
