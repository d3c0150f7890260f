"""Channel maps: an orthogonal map of the channels, one and the same at every position of a feature map.

That is what a linear layer's weights can take in, so only a model with such transforms can be locked after training.
"""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from keyseg_mm.errors import TransformError
from keyseg_mm.keys.derive import KeyStream
from keyseg_mm.maps.feature import FeatureTransform

_BLOCK = 2**18  # values of a weight carried at once


class ChannelMap(FeatureTransform):
    """An orthogonal linear map T of the channel dimension, ``y = T(x)`` at every position of a feature map."""

    __slots__ = ()

    @classmethod
    def derive(cls, stream: KeyStream, channels: int, **params: Any) -> ChannelMap:
        raise NotImplementedError

    def inverse(self) -> ChannelMap:
        found: ChannelMap = super().inverse()
        return found

    def compose(self, first: ChannelMap) -> ChannelMap:
        """The map ``x -> self(first(x))``, of the same family where the family is closed."""
        if first.channels != self.channels:
            raise TransformError(f'cannot compose maps of {first.channels} and {self.channels} channels')
        return self._compose(first)

    def carry(self, weight: Tensor, out: Tensor | None = None) -> Tensor:
        """``W T^-1`` for a weight W: T along its input channels, dimension 1. Rotations are rounded once.

        Args:
            weight: W.
            out: takes the result, of the shape and dtype of W; may be W itself. By default a new tensor does.
        """
        weight = weight.detach()
        if out is None:
            return self(weight, 1) if self.exact else self(weight.double(), 1).to(weight.dtype)
        rows = max(1, _BLOCK * len(weight) // max(1, weight.numel()))  # in blocks that stay in the processor's cache
        for source, target in zip(torch.split(weight, rows), torch.split(out.detach(), rows)):
            target.copy_(self.carry(source))
        return out

    def misfit(self, weight: Any) -> str:
        """What a weight would have to be for :meth:`carry`, in words; empty where it is that."""
        fits = isinstance(weight, Tensor) and weight.dim() > 1 and weight.shape[1] == self.channels
        return '' if fits else f'weight of {self.channels} input channels'

    def matrix(self) -> Tensor:
        """The map as a (channels, channels) float64 matrix M, ``T(x) = M @ x``."""
        return self._keep_layout(torch.eye(self.channels, dtype=torch.float64), 0)

    def _keep_layout(self, x: Tensor, dim: int) -> Tensor:
        """Work on a permuted map (channels_last, transposed tokens) in its own order of memory, so that it keeps it."""
        if x.is_contiguous():
            return self._apply(x, dim)
        strides = x.stride()
        order = sorted(range(x.dim()), key=lambda d: -strides[d])
        if not x.permute(order).is_contiguous():
            return self._apply(x, dim)
        moved = self._apply(x.permute(order), order.index(dim % x.dim()))
        return moved.permute([order.index(d) for d in range(x.dim())])

    def _apply(self, x: Tensor, dim: int) -> Tensor:
        raise NotImplementedError

    def _invert(self) -> ChannelMap:
        raise NotImplementedError

    def _compose(self, first: ChannelMap) -> ChannelMap:
        return Composition(first, self)


def select_channels(x: Tensor, dim: int, table: Tensor) -> Tensor:
    """``x.index_select(dim, table)``, by the faster of torch's ways: on a CPU that is gather for innermost channels."""
    if x.device.type == 'cpu' and x.stride(dim) == 1 and dim % x.dim() == x.dim() - 1:
        return x.gather(dim, table.expand(x.shape))
    return x.index_select(dim, table)


class Composition(ChannelMap):
    """Maps one after another, where no closed form exists."""

    __slots__ = ('first', 'then', 'channels')
    exact = False

    def __init__(self, first: ChannelMap, then: ChannelMap) -> None:
        super().__init__()
        self.first, self.then, self.channels = first, then, first.channels

    def _apply(self, x: Tensor, dim: int) -> Tensor:
        return self.then._apply(self.first._apply(x, dim), dim)

    def _invert(self) -> ChannelMap:
        return Composition(self.then.inverse(), self.first.inverse())

    def tables(self) -> dict[str, NDArray[Any]]:
        return {**self.first.tables(), **{f'then {k}': v for k, v in self.then.tables().items()}}
