"""Block-wise transforms: spatially variant, as in MaungMaung and Kiya's protection by feature maps (arXiv 2109.00224).

A map (C, H, W) is cut into blocks of ``block`` by ``block`` positions and all C channels, from the top left corner on;
each block is transformed alike. What happens to a value depends on where in its block it lies, which no layer's weights
can take in: these are for training with the key, and for comparison with channel maps.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from keyseg_mm.errors import TransformError
from keyseg_mm.maps.feature import FeatureTransform

DEFAULT_BLOCK = 2  # at stride 32 the maps of a picture of 512 pixels are 16 wide
LARGEST_BLOCK = 32


class BlockTransform(FeatureTransform):
    """A transform of blocks of a (B, C, H, W) map."""

    __slots__ = ()
    block: int

    @classmethod
    def check(cls, block: int = DEFAULT_BLOCK, **params: Any) -> None:
        super().check(**params)
        if not isinstance(block, int) or isinstance(block, bool) or not 1 <= block <= LARGEST_BLOCK:
            raise TransformError(f'{cls.__name__}: block is a whole number from 1 to {LARGEST_BLOCK}, not {block!r}')

    @classmethod
    def why_not(cls, dim: int, dims: int) -> str:
        if dims == 4 and dim % dims == 1:
            return ''
        return (
            f'{cls.__name__} works on blocks of the plane, and needs a map (B, C, H, W): from one with {dims} '
            f'dimensions and its channels in dimension {dim}, tokens for example, it cannot be told which values are '
            'neighbours; take another point, or a transform of the channels, as ChannelPermutation'
        )

    @property
    def public_id(self) -> str:
        return f'of {self.channels} channels in blocks of {self.block}'

    def _keep_layout(self, x: Tensor, dim: int) -> Tensor:
        return self._apply(x)

    def _apply(self, x: Tensor) -> Tensor:
        raise NotImplementedError
