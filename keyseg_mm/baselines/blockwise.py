"""Block-wise maps: spatially variant, as in MaungMaung and Kiya's protection by feature maps (arXiv 2109.00224).

A map (C, H, W) is cut into blocks of ``block`` by ``block`` positions and all C channels, from the top left corner on;
each block is treated alike. What happens to a value depends on where in its block it lies, which no layer's weights can
take in: these are for training with the key, and for comparison with channel maps.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from keyseg_mm.keys import derive
from keyseg_mm.keys.derive import KeyStream
from keyseg_mm.maps import Map, register
from keyseg_mm.maps.base import Tables
from keyseg_mm.maps.keyspace import bits_of_half, bits_of_orders, bits_of_permutation
from keyseg_mm.maps.order import select_channels, stays

DEFAULT_BLOCK = 2  # at stride 32 the maps of a picture of 512 pixels are 16 wide
LARGEST_BLOCK = 32


class BlockTransform(Map):
    """A transform of blocks of a (B, C, H, W) map."""

    __slots__ = ()
    block_sizes = (1, LARGEST_BLOCK)

    @classmethod
    def values(cls, channels: int, block: int = DEFAULT_BLOCK, **params: Any) -> int:
        return channels * block**2

    @classmethod
    def why_not(cls, dim: int, dims: int) -> str:
        if dims == 4 and dim % dims == 1:
            return ''
        return (
            f'{cls.__name__} works on blocks of the plane, and needs a map (B, C, H, W): from one with {dims} '
            f'dimensions and its channels in dimension {dim}, tokens for example, it cannot be told which values are '
            'neighbours; take another point, or a transform of the channels, as ChannelPermutation'
        )


@register
class BlockShuffle(BlockTransform):
    """Block-wise pixel shuffling of feature maps (SHF), after arXiv 2109.00224.

    Each block's ``channels * block * block`` values change places by one secret permutation, across channels too.

    A value's number in its block is ``(channel * block + row) * block + column``, and value k of the result is value
    ``table[k]``. The rows at the bottom and the columns at the right that fill no whole block have their channels
    permuted by ``rest``, as by ChannelPermutation. With ``block=1`` it is a channel permutation everywhere.
    """

    __slots__ = ()
    names = ('block permutation', 'permutation of the rest')

    @property
    def channels(self) -> int:
        return len(self._arrays[1])

    @classmethod
    def _drawn(
        cls, stream: KeyStream, channels: int, block: int = DEFAULT_BLOCK, **params: Any
    ) -> tuple[NDArray[Any], ...]:
        return derive.permutation(stream, channels * block * block), derive.permutation(stream, channels)

    def _kept(self) -> NDArray[np.bool_]:
        return stays(self._arrays[0])

    @classmethod
    def key_space(cls, channels: int, block: int = DEFAULT_BLOCK, **params: Any) -> float:
        return bits_of_orders(channels * block**2) + bits_of_permutation(channels)

    @classmethod
    def apply(cls, x: Tensor, dim: int, tables: Tables) -> Tensor:
        table, rest = tables
        size = math.isqrt(len(table) // len(rest))
        high, wide = (side - side % size for side in x.shape[2:])
        y = torch.empty_like(x)
        blocks = cls._blocks(x, high, wide, size)
        moved = blocks.flatten(1, 3).index_select(1, table)
        cls._blocks(y, high, wide, size).copy_(moved.view(blocks.shape))
        for part in ((..., slice(high, None), slice(None)), (..., slice(0, high), slice(wide, None))):
            if y[part].numel():
                y[part] = select_channels(x[part], 1, rest)
        return y

    @staticmethod
    def _blocks(x: Tensor, high: int, wide: int, size: int) -> Tensor:
        """The whole blocks as a view (B, C, block, block, blocks down, blocks across)."""
        down, across = high // size, wide // size
        parts = x[..., :high, :wide].view(*x.shape[:2], down, size, across, size)
        return parts.permute(0, 1, 3, 5, 2, 4)

    def _invert(self) -> BlockShuffle:
        return BlockShuffle(*map(np.argsort, self._arrays))


@register
class NegativePositive(BlockTransform):
    """Negative/positive transform of feature maps (NP), after the image transform of MaungMaung and Kiya.

    A secret half of each block's values is negated, the same places in every block.

    For images (arXiv 2105.14756) a value p of 0 to 255 becomes 255 - p: it is mirrored at the middle of its range. A
    feature map's values have no range that is known beforehand; they are mirrored at zero, where normalisation centres
    them. That is exact in every floating-point type. Rows and columns that fill no whole block are a part of one.
    """

    __slots__ = ()
    names = ('signs',)

    @classmethod
    def _drawn(
        cls, stream: KeyStream, channels: int, block: int = DEFAULT_BLOCK, **params: Any
    ) -> tuple[NDArray[Any], ...]:
        ranks = derive.permutation(stream, channels * block * block)
        signs = np.where(ranks < len(ranks) // 2, -1, 1).astype(np.int8)
        return (signs.reshape(channels, block, block),)

    def _kept(self) -> NDArray[np.bool_]:
        return self._arrays[0].ravel() > 0

    @classmethod
    def key_space(cls, channels: int, block: int = DEFAULT_BLOCK, **params: Any) -> float:
        return bits_of_half(channels * block**2)

    @classmethod
    def apply(cls, x: Tensor, dim: int, tables: Tables) -> Tensor:
        signs = tables[0].to(x.dtype)
        down, across = (-(-side // signs.shape[-1]) for side in x.shape[2:])
        tiled = signs.repeat(1, down, across)[:, : x.shape[2], : x.shape[3]]
        return torch.mul(x, tiled, out=torch.empty_like(x))

    def _invert(self) -> NegativePositive:
        return NegativePositive(*self._arrays)
