"""Learnable stand-ins for what the key does to blocks, of images or of feature maps."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from keyseg_mm.audit.front import Code, Pixels, from_blocks, in_blocks

#: Values of a block above which a matrix of them is not learnt: its gradient alone would take gigabytes.
MOST = 4096
_SOFT = 0.1  # spread of random starts
_GAIN = 20.0  # of the choices, so that they are made at the rate at which tables are learnt


class BlockMatrix(nn.Module):
    """Any affine map of a block's values: what a shuffle with signs is, and more.

    Args:
        count: values of a block.
        block: side of a block.
        start: ``'identity'`` (nothing is encrypted) or ``'uniform'`` (every order is as likely).
    """

    def __init__(self, count: int, block: int, start: str) -> None:
        super().__init__()
        first = torch.eye(count) if start == 'identity' else torch.full((count, count), 1 / count)
        self.matrix, self.offset, self.block = nn.Parameter(first), nn.Parameter(torch.zeros(count)), block

    def forward(self, x: Tensor, dim: int = 1) -> Tensor:
        """The changed map, of the same shape; what fills no whole block stays."""
        blocks, shape = in_blocks(x, self.block)
        return from_blocks(blocks @ self.matrix.T + self.offset, shape, self.block, x)


class BlockScales(nn.Module):
    """A scale and an offset for each of a block's values: what negative/positive is, and more.

    Args:
        count, block: as of :class:`BlockMatrix`.
        start: ``'identity'``, or ``'uniform'``: as likely negated as not.
    """

    def __init__(self, count: int, block: int, start: str) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        spread = _SOFT * torch.randn(count, generator=draw)
        self.scale = nn.Parameter(torch.ones(count) if start == 'identity' else spread)
        self.offset, self.block = nn.Parameter(torch.zeros(count)), block

    def forward(self, x: Tensor, dim: int = 1) -> Tensor:
        """The changed map, of the same shape; what fills no whole block stays."""
        blocks, shape = in_blocks(x, self.block)
        return from_blocks(blocks * self.scale + self.offset, shape, self.block, x)


class ByteTable(nn.Module):
    """For each of a block's values a soft choice between itself and a learnable table of bytes: what FFX is.

    Between bytes the table is interpolated, so that gradients flow.

    Args:
        count, block: as of :class:`BlockMatrix`.
        pixels: how normalised images and bytes go together.
        start: ``'identity'`` (nothing is chosen) or ``'uniform'`` (as likely as not).
    """

    def __init__(self, count: int, block: int, pixels: Pixels, start: str) -> None:
        super().__init__()
        self.choice = nn.Parameter(torch.full((count,), -3.0 / _GAIN if start == 'identity' else 0.0))
        self.table = nn.Parameter(torch.full((256,), 0.5))
        self.block, self.pixels = block, pixels

    def forward(self, images: Tensor) -> Tensor:
        """The changed images, of the same shape; what fills no whole block stays."""
        values = self.pixels.values(images).clamp(0, 255)
        blocks, shape = in_blocks(values, self.block)
        low = blocks.floor().clamp(max=254).long()
        looked = self.table[low] + (blocks - low) * (self.table[low + 1] - self.table[low])
        chosen = (_GAIN * self.choice).sigmoid()
        mixed = chosen * 255 * looked + (1 - chosen) * blocks
        return self.pixels.normalised(from_blocks(mixed, shape, self.block, values))


def front_for(code: Code) -> Callable[[str], nn.Module]:
    """What makes a stand-in for an encryption of images, from its start, by what is public of it."""
    count = 3 * code.block**2
    if code.method == 'NP':
        return lambda start: BlockScales(count, code.block, start)
    if code.method == 'FFX':
        return lambda start: ByteTable(count, code.block, code.pixels, start)
    return lambda start: BlockMatrix(count, code.block, start)
