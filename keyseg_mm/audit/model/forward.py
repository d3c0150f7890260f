"""Running segmentors of the host, and other modules from images to scores, with guesses at maps in their places."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from keyseg_mm.errors import KeysegError
from keyseg_mm.mm.dryrun import metainfo
from keyseg_mm.model.sites import Site, module_of
from keyseg_mm.runtime.encryptor import replace_tensor

#: What stands for an encryptor: a map, or anything else from (map, channel dimension) to a map.
Guess = Callable[[Tensor, int], Tensor]

_BATCH = 4  # photos through a model at once


def load_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load a whole state_dict.

    Raises:
        KeysegError: names or shapes differ.
    """
    try:
        nn.Module.load_state_dict(model, dict(weights), strict=True)
    except RuntimeError as error:
        raise KeysegError(f'these weights do not fit this {type(model).__name__}: {error}') from None


def logits(model: nn.Module, images: Tensor) -> Tensor:
    """The model's scores at the size of the images, which is that of the labels; gradients flow.

    Args:
        model: a segmentor of the host, or any module from images to scores.
        images: (B, 3, H, W), normalised.

    Returns:
        (B, classes, H, W).
    """
    host: Any = model
    size = tuple(images.shape[2:])
    if hasattr(model, 'inference') and hasattr(model, 'test_cfg'):
        scores: Tensor = host.inference(images, [metainfo(size) for _ in images])
    else:
        scores = host(images)
    if tuple(scores.shape[2:]) != size:
        scores = F.interpolate(scores, size, mode='bilinear', align_corners=False)
    return scores


def predict(model: nn.Module, images: Tensor) -> Tensor:
    """Label maps (N, H, W) that a model gives images (N, 3, H, W)."""
    return torch.cat(list(_predictions(model, images)))


def _predictions(model: nn.Module, images: Tensor) -> Iterator[Tensor]:
    model.eval()
    with torch.no_grad():
        for start in range(0, len(images), _BATCH):
            scores = logits(model, images[start : start + _BATCH])
            # a model with a single channel of scores is binary, and says yes above one half
            yield scores.argmax(1) if scores.shape[1] > 1 else (scores[:, 0].sigmoid() > 0.5).long()


def place(model: nn.Module, site: Site, guess: Guess) -> None:
    """Apply a guess at one site of a model, as the true encryptor would: the attacker's own stand-in for it."""

    def leave(module: nn.Module, args: Any, output: Any) -> Any:
        index = site.index_in(output)
        return output if index is None else replace_tensor(output, index, lambda x: guess(x, site.dim))

    def enter(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (guess(args[0], site.dim), *args[1:])

    module = module_of(model, site.point.name)
    if site.point.side == 'out':
        module.register_forward_hook(leave)
    else:
        module.register_forward_pre_hook(enter)
