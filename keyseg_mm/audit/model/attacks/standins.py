"""Learnable stand-ins for what the key does: to the channels of a map, to its blocks, or to the blocks of images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from keyseg_mm.audit.model.attack import Case
from keyseg_mm.audit.model.attacks.points import AttackedPoint
from keyseg_mm.audit.model.forward import place
from keyseg_mm.audit.model.input_cipher import ImageEncryption, Pixels
from keyseg_mm.baselines.blockwise import DEFAULT_BLOCK, NegativePositive
from keyseg_mm.maps import ChannelMap

#: Values of a block above which a matrix of them is not learnt: its gradient alone would take gigabytes.
MOST = 4096
#: What a stand-in may start from: nothing is encrypted, or every encryption is as likely.
STARTS = ('identity', 'uniform')
#: Name under which a model has the stand-ins that :func:`with_stand_ins` put there.
PARTS = 'stand_ins'
_SPREAD, _SOFT = 0.01, 0.1  # of random scores, and of signs and scales, at the start
_GAIN = 20.0  # of the choices of a byte table, so that they are made at the rate at which tables are learnt


class MatrixStandIn(nn.Module):
    """A learnable c x c map at one point; :meth:`matrix` says what it is now."""

    def matrix(self) -> Tensor:
        """The map, (c, c)."""
        raise NotImplementedError

    def forward(self, x: Tensor, dim: int) -> Tensor:
        """The map applied."""
        return torch.tensordot(self.matrix().to(x), x, dims=([1], [dim])).movedim(0, dim)  # type: ignore[no-any-return]


class FreeMatrix(MatrixStandIn):
    """Any matrix; for a rotation, nothing outside its blocks.

    Args:
        point: where.
        start: of :data:`STARTS`.
    """

    def __init__(self, point: AttackedPoint, start: str) -> None:
        super().__init__()
        mask = torch.block_diag(*(torch.ones(b.stop - b.start, b.stop - b.start) for b in point.blocks()))  # type: ignore[no-untyped-call]
        self.value = nn.Parameter(torch.eye(len(mask)) if start == 'identity' else mask / mask.sum(1, keepdim=True))
        self.mask = nn.Buffer(mask)

    def matrix(self) -> Tensor:
        return self.value * self.mask


class SoftMap(MatrixStandIn):
    """A doubly stochastic matrix by Sinkhorn's iterations, colder and so nearer to a permutation as time goes.

    Where the map may negate, a tanh for each output channel gives a soft sign; a rotation is parametrised in its own
    kind instead, block by block, by the matrix exponential of a skew-symmetric matrix and one soft reflection.

    Args:
        point: where.
        rng: breaks the symmetry of the start.
    """

    ITERATIONS = 20
    WARM, COLD = 1.0, 0.08
    GAIN = 3.0  # of the scores: a step of the optimizer moves them as far as it takes to choose while still warm

    def __init__(self, point: AttackedPoint, rng: np.random.Generator) -> None:
        super().__init__()
        c, self.point, self.temperature = point.entry.channels, point, self.WARM
        self.scores = nn.Parameter(torch.from_numpy(rng.standard_normal((c, c)) * _SPREAD).float())
        flips = len(point.blocks()) if point.turned else c * point.signed
        self.signs = nn.Parameter(torch.from_numpy(rng.standard_normal(flips) * _SOFT).float())

    def anneal(self, share: float) -> None:
        """Be told how much of the time has gone."""
        self.temperature = self.WARM * (self.COLD / self.WARM) ** share

    def matrix(self) -> Tensor:
        signs = torch.tanh(self.signs / self.temperature)
        if self.point.turned:
            turns = [self._turn(self.scores[b, b], sign) for b, sign in zip(self.point.blocks(), signs)]
            return torch.block_diag(*turns)  # type: ignore[no-any-return,no-untyped-call]
        log = self.GAIN * self.scores / self.temperature
        for _ in range(self.ITERATIONS):
            log = log - log.logsumexp(1, keepdim=True)
            log = log - log.logsumexp(0, keepdim=True)
        return log.exp() * signs[:, None] if len(signs) else log.exp()

    def rounded(self) -> ChannelMap:
        """The nearest map of the point's kind."""
        return self.point.round(self.matrix().detach().cpu().double().numpy())

    @staticmethod
    def _turn(scores: Tensor, sign: Tensor) -> Tensor:
        """A rotation of one block, its first channel negated or not as the loss likes."""
        return torch.matrix_exp(scores - scores.T) * torch.cat([sign[None], sign.new_ones(len(scores) - 1)])


class BlockMap(nn.Module):
    """Any affine map of a block's values, or a scale and an offset for each: what a shuffle or negations are, and more.

    Args:
        count: values of a block.
        block: side of a block.
        start: of :data:`STARTS`.
        scales: each value is only scaled and shifted.
    """

    def __init__(self, count: int, block: int, start: str, scales: bool) -> None:
        super().__init__()
        drawn = _SOFT * torch.randn(count, generator=torch.Generator().manual_seed(0))
        if start == 'identity':
            first = torch.ones(count) if scales else torch.eye(count)
        else:
            first = drawn if scales else torch.full((count, count), 1 / count)
        self.weight, self.offset, self.block = nn.Parameter(first), nn.Parameter(torch.zeros(count)), block

    def forward(self, x: Tensor, dim: int = 1) -> Tensor:
        """The changed map, of the same shape."""
        return in_blocks(x, self.block, self._mix)

    def _mix(self, blocks: Tensor) -> Tensor:
        mixed = blocks * self.weight if self.weight.dim() == 1 else blocks @ self.weight.T
        return mixed + self.offset


class ByteTable(nn.Module):
    """For each of a block's values a soft choice between itself and a learnable table of bytes: what FFX is.

    Between bytes the table is interpolated, so that gradients flow.

    Args:
        count, block, start: as of :class:`BlockMap`.
        pixels: how normalised images and bytes go together.
    """

    def __init__(self, count: int, block: int, start: str, pixels: Pixels) -> None:
        super().__init__()
        self.choice = nn.Parameter(torch.full((count,), -3.0 / _GAIN if start == 'identity' else 0.0))
        self.table = nn.Parameter(torch.full((256,), 0.5))
        self.block, self.pixels = block, pixels

    def forward(self, images: Tensor) -> Tensor:
        """The changed images, of the same shape."""
        values = self.pixels.values(images).clamp(0, 255)
        return self.pixels.normalised(in_blocks(values, self.block, self._mix))

    def _mix(self, blocks: Tensor) -> Tensor:
        low = blocks.floor().clamp(max=254).long()
        looked = self.table[low] + (blocks - low) * (self.table[low + 1] - self.table[low])
        chosen = (_GAIN * self.choice).sigmoid()
        return chosen * 255 * looked + (1 - chosen) * blocks


def in_blocks(x: Tensor, block: int, change: Callable[[Tensor], Tensor]) -> Tensor:
    """A map (N, C, H, W) with its whole blocks changed, whose values come last; what fills no whole block stays.

    Values of a block are counted channel by channel, in each row by row.
    """
    high, wide = (side - side % block for side in x.shape[2:])
    blocks = F.pixel_unshuffle(x[..., :high, :wide], block).permute(0, 2, 3, 1)
    changed = F.pixel_shuffle(change(blocks).permute(0, 3, 1, 2), block)
    return torch.cat([torch.cat([changed, x[..., :high, wide:]], 3), x[..., high:, :]], 2)


def block_stand_in(point: AttackedPoint, start: str) -> nn.Module:
    """A stand-in for a block-wise transform of the map at a point; only scales where blocks are large."""
    block = int(point.entry.transform.get('block', DEFAULT_BLOCK))
    count = point.entry.channels * block**2
    scales = point.entry.transform['type'] == NegativePositive.__name__ or count > MOST
    return BlockMap(count, block, start, scales)


def image_stand_in(images: ImageEncryption, start: str) -> nn.Module:
    """A stand-in for an encryption of images, by what is public of it."""
    count = 3 * images.block**2
    if images.method == 'FFX':
        return ByteTable(count, images.block, start, images.pixels)
    return BlockMap(count, images.block, start, scales=images.method == 'NP')


def with_stand_ins(
    case: Case, points: Sequence[AttackedPoint], make: Callable[[AttackedPoint], nn.Module]
) -> nn.Module:
    """The case's model with a stand-in at every point, which are modules of it too (:data:`PARTS`), to be trained."""
    model, parts = case.model(), nn.ModuleList(map(make, points))
    for point, part in zip(points, parts):
        place(model, case.sites[point.entry.point], part)
    model.add_module(PARTS, parts.to(next(iter(case.weights.values())).device))
    return model


def stand_ins_of(model: nn.Module) -> list[Any]:
    """The stand-ins that :func:`with_stand_ins` put there, in the order of the points."""
    return list(model.get_submodule(PARTS).children())
