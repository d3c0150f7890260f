"""Block-wise pixel shuffling of feature maps (SHF), after MaungMaung and Kiya, arXiv 2109.00224."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from keyseg_mm.keys import derive
from keyseg_mm.keys.derive import KeyStream
from keyseg_mm.maps.base import select_channels
from keyseg_mm.maps.blockwise import DEFAULT_BLOCK, BlockTransform


class BlockShuffle(BlockTransform):
    """Each block's ``channels * block * block`` values change places by one secret permutation, across channels too.

    A value's number in its block is ``(channel * block + row) * block + column``, and value k of the result is value
    ``table[k]``. The rows at the bottom and the columns at the right that fill no whole block have their channels
    permuted by ``rest``, as by ChannelPermutation. With ``block=1`` it is a channel permutation everywhere.

    Args:
        table: permutation of a block's values, shape (channels * block * block,).
        rest: permutation of the channels, shape (channels,).
        block: side of a block.
    """

    __slots__ = ('_table', '_rest', 'channels', 'block')

    def __init__(self, table: NDArray[np.int64], rest: NDArray[np.int64], block: int) -> None:
        super().__init__()
        self._table, self._rest, self.channels, self.block = table, rest, len(rest), block

    @classmethod
    def derive(cls, stream: KeyStream, channels: int, **params: Any) -> BlockShuffle:
        cls.check(**params)
        block = params.get('block', DEFAULT_BLOCK)
        table = derive.permutation(stream, channels * block * block)
        return cls(table, derive.permutation(stream, channels), block)

    def tables(self) -> dict[str, NDArray[Any]]:
        found = {'block permutation': self._table, 'permutation of the rest': self._rest}
        return {**found, **{f'inverse {name}': np.argsort(table) for name, table in found.items()}}

    def _apply(self, x: Tensor) -> Tensor:
        table = self._place('table', self._table, x.device, torch.int64)
        rest = self._place('rest', self._rest, x.device, torch.int64)
        high, wide = (side - side % self.block for side in x.shape[2:])
        y = torch.empty_like(x)
        blocks = self._blocks(x, high, wide)
        moved = blocks.flatten(1, 3).index_select(1, table)
        self._blocks(y, high, wide).copy_(moved.view(blocks.shape))
        for part in ((..., slice(high, None), slice(None)), (..., slice(0, high), slice(wide, None))):
            if y[part].numel():
                y[part] = select_channels(x[part], 1, rest)
        return y

    def _blocks(self, x: Tensor, high: int, wide: int) -> Tensor:
        """The whole blocks as a view (B, C, block, block, blocks down, blocks across)."""
        size = self.block
        down, across = high // size, wide // size
        parts = x[..., :high, :wide].view(*x.shape[:2], down, size, across, size)
        return parts.permute(0, 1, 3, 5, 2, 4)

    def _invert(self) -> BlockShuffle:
        return BlockShuffle(np.argsort(self._table), np.argsort(self._rest), self.block)
