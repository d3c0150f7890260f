"""Fine-tuning of the decode head alone."""

from __future__ import annotations

from torch import nn

from keyseg_mm.audit.attack import register
from keyseg_mm.audit.attacks._finetune import FineTuning, head_names


@register
class FineTuneHead(FineTuning):
    """Train the decode head (auxiliary heads too) on the labelled images, and freeze the rest.

    Needs labelled images. Fits few parameters, so it does well with very few images where the backbone's maps are
    still worth something: where only late points are protected, a permuted map is as good as any to a new head.

    Costs a training, less the backward pass through the backbone.
    """

    name = 'finetune-head'
    title = 'fine-tuning, head only'
    source = 'ADALOC, arXiv 2511.18772'
    LR = 3e-3

    def learns(self, model: nn.Module, name: str) -> bool:
        return name in head_names(model)
