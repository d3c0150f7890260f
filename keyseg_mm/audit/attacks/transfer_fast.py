"""Fine-tuning of all weights for other classes, at the rate of training from scratch."""

from __future__ import annotations

from keyseg_mm.audit.attack import register
from keyseg_mm.audit.attacks.finetune_all import FineTuneAll


@register
class TransferFast(FineTuneAll):
    """Train all of the protected weights for the attacker's own classes, at a higher learning rate.

    Needs labelled images of another data set. The classifier starts from nothing there, and what a lock has scrambled
    is unlearnt before it is of use, so a rate that would ruin a good start does well here; and the controls that train
    from scratch may have it too.

    Costs a training.
    """

    name = 'transfer-fast'
    title = 'fine-tuning, all weights, faster'
    needs = frozenset({'labelled', 'classifier'})
    source = 'transfer learning: Yosinski et al., NeurIPS 2014; Kornblith et al., CVPR 2019'
    LR = 3e-3
