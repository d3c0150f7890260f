"""Channel maps: permutation, signed permutation and rotation of the channels."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from keyseg_mm.errors import TransformError
from keyseg_mm.keys import derive
from keyseg_mm.keys.derive import KeyStream
from keyseg_mm.maps.base import ChannelMap, select_channels
from keyseg_mm.maps.keyspace import bits_of_permutation

DEFAULT_BLOCK = 8
LARGEST_BLOCK = 64


class ChannelPermutation(ChannelMap):
    """The paper's spatially invariant permutation (arXiv 2206.05422, section 3).

    ``y[c] = x[table[c]]`` with a uniform secret permutation of the channels.

    Args:
        table: the permutation, shape (channels,).
    """

    __slots__ = ('_table', 'channels')

    def __init__(self, table: NDArray[np.int64]) -> None:
        super().__init__()
        self._table, self.channels = table, len(table)

    @classmethod
    def derive(cls, stream: KeyStream, channels: int, **params: Any) -> ChannelPermutation:
        cls.check(**params)
        return cls(derive.permutation(stream, channels))

    @classmethod
    def key_space(cls, channels: int, **params: Any) -> float:
        return bits_of_permutation(channels)

    def tables(self) -> dict[str, NDArray[Any]]:
        return {'permutation': self._table, 'inverse permutation': np.argsort(self._table)}

    def _arrays(self) -> tuple[NDArray[Any], ...]:
        return (self._table,)

    @classmethod
    def _run(cls, x: Tensor, dim: int, *tables: Tensor) -> Tensor:
        return select_channels(x, dim, tables[0])

    def _invert(self) -> ChannelMap:
        return ChannelPermutation(np.argsort(self._table))

    def _compose(self, first: ChannelMap) -> ChannelMap:
        if type(first) is ChannelPermutation:
            return ChannelPermutation(first._table[self._table])
        return super()._compose(first)


class SignedChannelPermutation(ChannelMap):
    """``y[c] = sign[c] * x[table[c]]``.

    A permutation leaves every channel's sign and scale as they were, which a layer behind it partly survives; random
    signs take that away: at a layer behind a ReLU, negated channels are values it has never seen.

    Args:
        table: the permutation, shape (channels,).
        signs: +1 or -1, shape (channels,).
    """

    __slots__ = ('_table', '_signs', 'channels')

    def __init__(self, table: NDArray[np.int64], signs: NDArray[np.int8]) -> None:
        super().__init__()
        self._table, self._signs, self.channels = table, signs, len(table)

    @classmethod
    def derive(cls, stream: KeyStream, channels: int, **params: Any) -> SignedChannelPermutation:
        cls.check(**params)
        return cls(derive.permutation(stream, channels), derive.signs(stream, channels))

    @classmethod
    def key_space(cls, channels: int, **params: Any) -> float:
        return bits_of_permutation(channels) + channels

    def tables(self) -> dict[str, NDArray[Any]]:
        return {**ChannelPermutation(self._table).tables(), 'signs': self._signs}

    def _arrays(self) -> tuple[NDArray[Any], ...]:
        return self._table, self._signs

    @classmethod
    def _run(cls, x: Tensor, dim: int, *tables: Tensor) -> Tensor:
        table, signs = tables
        shape = [1] * x.dim()
        shape[dim] = -1
        return select_channels(x, dim, table).mul_(signs.to(x.dtype).view(shape))

    def _invert(self) -> ChannelMap:
        back = np.argsort(self._table)
        return SignedChannelPermutation(back, self._signs[back])

    def _compose(self, first: ChannelMap) -> ChannelMap:
        if type(first) is SignedChannelPermutation:
            return SignedChannelPermutation(first._table[self._table], self._signs * first._signs[self._table])
        return super()._compose(first)


class ChannelRotation(ChannelMap):
    """Block-diagonal orthogonal map: each run of ``block`` channels is turned by its own Haar-distributed matrix.

    Exact only to rounding. Half precision is computed in float32 and rounded once. Where ``block`` does not divide the
    channels, the last block is smaller.

    Args:
        blocks: matrices of the full blocks, shape (n, block, block), float64.
        rest: matrix of the last, smaller block, shape (r, r), r < block, may be (0, 0).
    """

    __slots__ = ('_blocks', '_rest', 'channels')
    exact = False

    def __init__(self, blocks: NDArray[np.float64], rest: NDArray[np.float64]) -> None:
        super().__init__()
        self._blocks, self._rest = blocks, rest
        self.channels = blocks.shape[0] * blocks.shape[1] + rest.shape[0]

    @classmethod
    def check(cls, block: int = DEFAULT_BLOCK, **params: Any) -> None:
        super().check(**params)
        if not isinstance(block, int) or isinstance(block, bool) or not 2 <= block <= LARGEST_BLOCK:
            raise TransformError(f'ChannelRotation: block is a whole number from 2 to {LARGEST_BLOCK}, not {block!r}')

    @classmethod
    def derive(cls, stream: KeyStream, channels: int, **params: Any) -> ChannelRotation:
        cls.check(**params)
        block = params.get('block', DEFAULT_BLOCK)
        full, rest = divmod(channels, block)
        blocks = derive.rotations(stream, full, block) if full else np.empty((0, block, block))
        return cls(blocks, derive.rotations(stream, 1, rest)[0] if rest else np.empty((0, 0)))

    @classmethod
    def key_space(cls, channels: int, **params: Any) -> float:
        return math.inf

    def tables(self) -> dict[str, NDArray[Any]]:
        return {'rotation': self._blocks, 'last rotation': self._rest}

    def _arrays(self) -> tuple[NDArray[Any], ...]:
        return self._blocks, self._rest

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
        return ChannelRotation(self._blocks.transpose(0, 2, 1), self._rest.T)
