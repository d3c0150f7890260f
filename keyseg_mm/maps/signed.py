"""Signed channel permutation: permute the channels and negate a secret half of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from keyseg_mm.keys import derive
from keyseg_mm.keys.derive import KeyStream
from keyseg_mm.maps.base import ChannelMap, select_channels
from keyseg_mm.maps.permutation import ChannelPermutation


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

    def tables(self) -> dict[str, NDArray[Any]]:
        return {**ChannelPermutation(self._table).tables(), 'signs': self._signs}

    def _apply(self, x: Tensor, dim: int) -> Tensor:
        table = self._place('table', self._table, x.device, torch.int64)
        signs = self._place('signs', self._signs, x.device, x.dtype)
        shape = [1] * x.dim()
        shape[dim] = self.channels
        return select_channels(x, dim, table).mul_(signs.view(shape))

    def _invert(self) -> ChannelMap:
        back = np.argsort(self._table)
        return SignedChannelPermutation(back, self._signs[back])

    def _compose(self, first: ChannelMap) -> ChannelMap:
        if type(first) is SignedChannelPermutation:
            return SignedChannelPermutation(first._table[self._table], self._signs * first._signs[self._table])
        return super()._compose(first)
