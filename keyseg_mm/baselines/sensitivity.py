"""How much a model's output depends on each of its weights, found without anybody's data.

The first-order effect of taking a weight out, ``|w dL/dw|`` (Molchanov et al. 2017, arXiv 1611.06440, equation 8, used
there to prune). L is the cross-entropy of what the model says of painted street scenes against its own decisions, so
that neither photos nor labels are needed; docs/results.md compares it with photos and labels.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from keyseg_mm.errors import LockError
from keyseg_mm.mm.dryrun import watch_module
from keyseg_mm.mm.inputs import SIDE, pictures, tensors_of
from keyseg_mm.model.passes import Passes

SCENES = 4


def sensitivity(model: nn.Module, state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    """Scores of a model's parameters.

    Args:
        model: the plain model of the host, with any weights; it stays as it is.
        state_dict: plain weights that fit it.

    Returns:
        By name, of the parameters that the test pass's output depends on, the shape of each: not negative, float32.

    Raises:
        PointError: it could not be run, or its output does not depend on its weights.
    """
    model = copy.deepcopy(model)  # state_dict may be its own
    model.load_state_dict(state_dict, strict=False)
    return watch_module(model, _scores, image=lambda double, _, side: pictures(double, SCENES, side), smallest=SIDE)


def _scores(double: nn.Module, passes: Passes) -> dict[str, Tensor]:
    parameters = {name: p for name, p in double.named_parameters() if p.is_floating_point()}
    with torch.enable_grad():
        for parameter in parameters.values():
            parameter.requires_grad_(True)  # those of frozen stages too
        outputs = [tensor for _, tensor in tensors_of(passes['test']()) if tensor.requires_grad]
        if not outputs:
            raise LockError(f'the output of this {type(double).__name__} does not depend on its weights')
        loss = torch.stack([_against_itself(tensor) for tensor in outputs]).sum()
        found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return {
        name: (parameter * gradient).detach().abs().float()
        for (name, parameter), gradient in zip(parameters.items(), found)
        if gradient is not None
    }


def _against_itself(output: Tensor) -> Tensor:
    """Cross-entropy of class maps (C, H, W) against their own decisions; of other outputs their mean square."""
    is_classes = output.dim() == 3 and output.shape[0] > 1
    return nn.functional.cross_entropy(output[None], output.argmax(0)[None]) if is_classes else output.square().mean()
