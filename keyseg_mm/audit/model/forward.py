"""Running segmentors of the host, and other modules from images to scores, with guesses at maps in their places."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from keyseg_mm.errors import KeysegError
from keyseg_mm.maps.base import ChannelMap
from keyseg_mm.model.points import Point
from keyseg_mm.model.sites import Site, module_of
from keyseg_mm.runtime.encryptor import replace_tensor

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


def metainfo(size: tuple[int, ...]) -> dict[str, Any]:
    """What the host wants to know of an image (height, width) that nothing was done to."""
    return {'ori_shape': size, 'img_shape': size, 'pad_shape': size, 'padding_size': [0, 0, 0, 0], 'flip': False}


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


class MatrixMap(ChannelMap):
    """Any c x c matrix as a guess: ``y = M x`` at every position; differentiable in x and in M.

    Args:
        matrix: (c, c), a tensor (may require grad) or an array.
    """

    __slots__ = ('_matrix', 'channels')
    exact = False

    def __init__(self, matrix: Tensor | NDArray[Any]) -> None:
        super().__init__()
        self._matrix = torch.as_tensor(matrix)
        if self._matrix.dim() != 2 or self._matrix.shape[0] != self._matrix.shape[1]:
            raise KeysegError(f'a guess is a square matrix, not {tuple(self._matrix.shape)}')
        self.channels = len(self._matrix)

    def __call__(self, x: Tensor, dim: int = 1) -> Tensor:
        return self._apply(x, dim)

    def tables(self) -> dict[str, NDArray[Any]]:
        return {'matrix': self._matrix.detach().cpu().double().numpy()}

    def matrix(self) -> Tensor:
        return self._matrix.detach().cpu().double()

    def _apply(self, x: Tensor, dim: int) -> Tensor:
        matrix = self._matrix.to(device=x.device, dtype=x.dtype)
        return torch.tensordot(matrix, x, dims=([1], [dim])).movedim(0, dim)  # type: ignore[no-any-return]

    def _invert(self) -> ChannelMap:
        return MatrixMap(torch.linalg.pinv(self._matrix.detach()))


class GuessHook:
    """Applies a guess at one point, as the true encryptor would: the attacker's own stand-in for it.

    Args:
        point: where.
        guess: the map; anything that takes ``(x, dim)``, so a learnable stand-in will do too.
        site: what a dry run showed of the point. Needed only where a module returns other maps in training.
    """

    def __init__(self, point: Point, guess: Callable[[Tensor, int], Tensor], site: Site | None = None) -> None:
        self.point, self.guess, self.site = point, guess, site

    def attach(self, model: nn.Module) -> Any:
        """Hook it to a model; returns the handle that takes it off."""
        module = module_of(model, self.point.name)
        if self.point.side == 'out':
            return module.register_forward_hook(self.on_output)
        return module.register_forward_pre_hook(self.on_input)

    def on_output(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Forward hook of an ``out:`` point."""
        index = self.site.index_in(output) if self.site else self.point.index or 0
        if index is None:
            return output
        return replace_tensor(output, index, lambda x: self.guess(x, self.dim(module, x)))

    def on_input(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Forward pre-hook of an ``in:`` point."""
        return (self.guess(args[0], self.dim(module, args[0])), *args[1:])

    def dim(self, module: nn.Module, x: Tensor) -> int:
        """The channel dimension there, by the rule of :mod:`keyseg_mm.model.points`."""
        if self.site:
            return self.site.dim
        tokens = isinstance(module, (nn.Linear, nn.LayerNorm)) or (x.dim() < 4 and not isinstance(module, _ConvNd))
        return -1 if tokens else 1
