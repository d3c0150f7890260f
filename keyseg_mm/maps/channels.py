"""Channel maps: permutation, signed permutation and rotation of the channels."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from keyseg_mm.keys import derive
from keyseg_mm.keys.derive import KeyStream
from keyseg_mm.keys.secret import unseen
from keyseg_mm.maps.base import ChannelMap
from keyseg_mm.maps.keyspace import bits_of_orders
from keyseg_mm.maps.order import OfRows, select_channels, stays

DEFAULT_BLOCK = 8
LARGEST_BLOCK = 64
_TURNED = 0.5  # the diagonal entry of a channel that is turned by 60 degrees or more


class ChannelPermutation(ChannelMap):
    """The paper's spatially invariant permutation (arXiv 2206.05422, section 3).

    ``y[c] = x[table[c]]`` with a uniform secret permutation of the channels, shape (channels,); of a layer that reads
    its channels in groups, one of each group's.
    """

    __slots__ = ()
    names = ('permutation',)
    keeps_groups = True

    @classmethod
    def _drawn(cls, stream: KeyStream, channels: int, groups: int = 1, **params: Any) -> tuple[NDArray[Any], ...]:
        return (_within(groups, stream, channels),)

    def _kept(self) -> NDArray[np.bool_]:
        return stays(self._arrays[0])

    @classmethod
    def key_space(cls, channels: int, groups: int = 1, **params: Any) -> float:
        return groups * bits_of_orders(channels // groups)

    @classmethod
    def _run(cls, x: Tensor, dim: int, *tables: Tensor) -> Tensor:
        return select_channels(x, dim, tables[0])

    def _invert(self) -> ChannelMap:
        return ChannelPermutation(np.argsort(self._arrays[0]))

    def compose(self, first: ChannelMap) -> ChannelMap:
        both = super().compose(first)
        same = type(first) is ChannelPermutation
        return ChannelPermutation(first._arrays[0][self._arrays[0]]) if same else both


class SignedChannelPermutation(ChannelMap):
    """``y[c] = sign[c] * x[table[c]]``; permutation and signs of shape (channels,).

    A permutation leaves every channel's sign and scale as they were, which a layer behind it partly survives; random
    signs take that away: at a layer behind a ReLU, negated channels are values it has never seen.
    """

    __slots__ = ()
    names = ('permutation', 'signs')
    keeps_groups = True

    @classmethod
    def _drawn(cls, stream: KeyStream, channels: int, groups: int = 1, **params: Any) -> tuple[NDArray[Any], ...]:
        return _within(groups, stream, channels), derive.signs(stream, channels)

    def _kept(self) -> NDArray[np.bool_]:
        table, signs = self._arrays
        return stays(table) & (signs > 0)

    @classmethod
    def key_space(cls, channels: int, groups: int = 1, **params: Any) -> float:
        return groups * bits_of_orders(channels // groups, forms=2)

    @classmethod
    def _run(cls, x: Tensor, dim: int, *tables: Tensor) -> Tensor:
        table, signs = tables
        shape = [1] * x.dim()
        shape[dim] = -1
        return select_channels(x, dim, table).mul_(signs.to(x.dtype).view(shape))

    @unseen
    def by_rows(self, weight: Tensor) -> OfRows:
        table, signs = self.placed(weight.device, weight.dtype)
        wide = signs.to(weight.dtype).repeat_interleave(weight.shape[2:].numel())  # short runs of one factor are slow

        @unseen
        def run(rows: Tensor) -> Tensor:
            return select_channels(rows, 1, table).flatten(1).mul_(wide).view_as(rows)

        return run

    def _invert(self) -> ChannelMap:
        table, signs = self._arrays
        back = np.argsort(table)
        return SignedChannelPermutation(back, signs[back])

    def compose(self, first: ChannelMap) -> ChannelMap:
        both = super().compose(first)
        if type(first) is not SignedChannelPermutation:
            return both
        (table, signs), (before, its_signs) = self._arrays, first._arrays
        return SignedChannelPermutation(before[table], signs * its_signs[table])


class ChannelRotation(ChannelMap):
    """Block-diagonal orthogonal map: each run of ``block`` channels is turned by its own Haar-distributed matrix.

    Exact only to rounding. Half precision is computed in float32 and rounded once. Where ``block`` does not divide the
    channels, the last block is smaller. Its tables, float64, are the matrices of the full blocks, shape (n, block,
    block), and that of the last, smaller block, shape (r, r), r < block, which may be (0, 0).
    """

    __slots__ = ()
    exact = False
    names = ('rotation', 'last rotation')
    block_sizes = (2, LARGEST_BLOCK)

    @property
    def channels(self) -> int:
        blocks, rest = self._arrays
        return int(blocks.shape[0] * blocks.shape[1] + rest.shape[0])

    @classmethod
    def _drawn(
        cls, stream: KeyStream, channels: int, block: int = DEFAULT_BLOCK, **params: Any
    ) -> tuple[NDArray[Any], ...]:
        full, rest = divmod(channels, block)
        blocks = derive.rotations(stream, full, block) if full else np.empty((0, block, block))
        return blocks, derive.rotations(stream, 1, rest)[0] if rest else np.empty((0, 0))

    def _kept(self) -> NDArray[np.bool_]:
        diagonals = [np.einsum('bii->bi', self._arrays[0]).ravel(), np.diagonal(self._arrays[1])]
        return np.concatenate(diagonals) >= _TURNED

    @classmethod
    def key_space(cls, channels: int, **params: Any) -> float:
        return math.inf

    @classmethod
    def _run(cls, x: Tensor, dim: int, *tables: Tensor) -> Tensor:
        work = x.dtype if x.dtype in (torch.float32, torch.float64) else torch.float32
        blocks, rest = (table.to(work) for table in tables)
        size, channels = blocks.shape[0] * blocks.shape[1], x.shape[dim]
        moved = x.movedim(dim, 0).to(work)
        columns = moved.reshape(channels, x.numel() // channels)
        with torch.autocast(x.device.type, enabled=False):
            parts = []
            if size:
                apart = columns[:size].reshape(*blocks.shape[:2], columns.shape[1])
                parts.append(torch.bmm(blocks, apart).flatten(0, 1))
            if channels > size:
                parts.append(rest @ columns[size:])
        turned = torch.cat(parts).reshape(moved.shape)
        return turned.to(x.dtype).movedim(0, dim).contiguous()

    def _invert(self) -> ChannelMap:
        blocks, rest = self._arrays
        return ChannelRotation(blocks.transpose(0, 2, 1), rest.T)


def _within(groups: int, stream: KeyStream, channels: int) -> NDArray[np.int64]:
    """A permutation of the channels that keeps each in its group; the groups come one after another."""
    size = channels // groups
    return np.concatenate([at * size + derive.permutation(stream, size) for at in range(groups)])
