"""Fine-tuning of the decode head alone for other classes, at a high rate."""

from __future__ import annotations

from keyseg_mm.audit.attack import register
from keyseg_mm.audit.attacks.finetune_head import FineTuneHead
from keyseg_mm.audit.attacks.transfer_substitute import LR as SUBSTITUTE_LR


@register
class TransferHead(FineTuneHead):
    """Train the decode head for the attacker's own classes on the frozen backbone, as fast as substitute layers learn.

    Needs labelled images of another data set. It is what a new head makes of the features as they are; beside the
    substitute layers it tells what the maps add, and to the key's holder, whose maps are right, it gives the same rate.

    Costs a training, less the backward pass through the backbone.
    """

    name = 'transfer-head'
    title = 'fine-tuning, head only, faster'
    needs = frozenset({'labelled', 'classifier'})
    source = 'linear probing in transfer learning: Kornblith et al., CVPR 2019'
    LR = SUBSTITUTE_LR
