"""Channel permutation, the paper's spatially invariant permutation (arXiv 2206.05422, section 3)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from keyseg_mm.keys import derive
from keyseg_mm.keys.derive import KeyStream
from keyseg_mm.maps.base import ChannelMap, select_channels


class ChannelPermutation(ChannelMap):
    """``y[c] = x[table[c]]`` with a uniform secret permutation of the channels.

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

    def tables(self) -> dict[str, NDArray[Any]]:
        return {'permutation': self._table, 'inverse permutation': np.argsort(self._table)}

    def _apply(self, x: Tensor, dim: int) -> Tensor:
        return select_channels(x, dim, self._place('table', self._table, x.device, torch.int64))

    def _invert(self) -> ChannelMap:
        return ChannelPermutation(np.argsort(self._table))

    def _compose(self, first: ChannelMap) -> ChannelMap:
        if type(first) is ChannelPermutation:
            return ChannelPermutation(first._table[self._table])
        return super()._compose(first)
