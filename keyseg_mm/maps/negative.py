"""Block-wise negative/positive transform of feature maps (NP), after the image transform of MaungMaung and Kiya."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from keyseg_mm.keys import derive
from keyseg_mm.keys.derive import KeyStream
from keyseg_mm.maps.blockwise import DEFAULT_BLOCK, BlockTransform


class NegativePositive(BlockTransform):
    """A secret half of each block's values is negated, the same places in every block.

    For images (arXiv 2105.14756) a value p of 0 to 255 becomes 255 - p: it is mirrored at the middle of its range. A
    feature map's values have no range that is known beforehand; they are mirrored at zero, where normalisation centres
    them. That is exact in every floating-point type. Rows and columns that fill no whole block are a part of one.

    Args:
        signs: +1 or -1, shape (channels, block, block).
    """

    __slots__ = ('_signs', 'channels', 'block')

    def __init__(self, signs: NDArray[np.int8]) -> None:
        super().__init__()
        self._signs, self.channels, self.block = signs, signs.shape[0], signs.shape[1]

    @classmethod
    def derive(cls, stream: KeyStream, channels: int, **params: Any) -> NegativePositive:
        cls.check(**params)
        block = params.get('block', DEFAULT_BLOCK)
        ranks = derive.permutation(stream, channels * block * block)
        signs = np.where(ranks < len(ranks) // 2, -1, 1).astype(np.int8)
        return cls(signs.reshape(channels, block, block))

    def tables(self) -> dict[str, NDArray[Any]]:
        return {'signs': self._signs}

    def _apply(self, x: Tensor) -> Tensor:
        signs = self._place('signs', self._signs, x.device, x.dtype)
        down, across = (-(-side // self.block) for side in x.shape[2:])
        tiled = signs.repeat(1, down, across)[:, : x.shape[2], : x.shape[3]]
        return torch.mul(x, tiled, out=torch.empty_like(x))

    def _invert(self) -> NegativePositive:
        return NegativePositive(self._signs)
