"""Substitutes for the key: something learnable where the encryption would be, trained on labelled photos.

All weights stay as they are, so few photos suffice: what is learnt is only the map that the weights expect. After Chen
et al., CVPR 2023, who so forge passports.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from keyseg_mm.audit.engine.attack import Progress
from keyseg_mm.audit.model.attack import Attack, Attempt, Case, LabelledPhotos, Target, register
from keyseg_mm.audit.model.attacks.points import AttackedPoint, points_of
from keyseg_mm.audit.model.forward import ImageEncryption, Pixels, WithInput, place
from keyseg_mm.audit.model.training import Recipe, cross_entropy, train
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
    """Any matrix; for a rotation, nothing outside its blocks. It starts as one of :data:`STARTS`."""

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
    kind instead, block by block, by the matrix exponential of a skew-symmetric matrix and one soft reflection. What is
    drawn breaks the symmetry of the start.
    """

    ITERATIONS, WARM, COLD = 20, 1.0, 0.08
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
        learnt = self.matrix().detach().cpu().double().numpy()
        return self.point.round(learnt.T if self.point.entry.point.startswith('back:') else learnt)

    @staticmethod
    def _turn(scores: Tensor, sign: Tensor) -> Tensor:
        """A rotation of one block, its first channel negated or not as the loss likes."""
        return torch.matrix_exp(scores - scores.T) * torch.cat([sign[None], sign.new_ones(len(scores) - 1)])


class BlockMap(nn.Module):
    """Any affine map of a block's values, or a scale and an offset for each: what a shuffle or negations are, and more.

    Args:
        count: values of a block, of side ``block``.
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

    Between bytes the table is interpolated, so that gradients flow. Arguments as of :class:`BlockMap`.
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


def with_stand_ins(case: Case, make: Callable[[AttackedPoint], nn.Module]) -> nn.Module:
    """The case's model with a stand-in at every point, which are modules of it too (:data:`PARTS`), to be trained."""
    model, points = case.model(), points_of(case)
    parts = nn.ModuleList(map(make, points))
    for point, part in zip(points, parts):
        place(model, case.sites[point.entry.point], part)
    model.add_module(PARTS, parts.to(next(iter(case.weights.values())).device))
    return model


class Substitute(Attack):
    """Learn something where the encryption would be, from the better of two starts.

    A fifth of the steps tries both, nothing encrypted and every encryption as likely; the better goes on.
    """

    needs = frozenset({LabelledPhotos})
    source = 'Chen et al., CVPR 2023 (ambiguity attack on passports)'
    cost = 'as long as training for the same steps'
    lr: ClassVar[float] = 0.01
    learnt: ClassVar[str] = PARTS  # prefix of the parameters that learn

    def prepare(self, case: Case, start: str) -> nn.Module:
        """The case's model with what is to be learnt in its place."""
        return with_stand_ins(case, partial(FreeMatrix, start=start))

    def recipe(self, case: Case, steps: int) -> Recipe:
        """How to train for some steps."""
        return Recipe(steps, self.lr, lambda name: name.startswith(self.learnt), cross_entropy, weight_decay=0.0)

    def run(self, case: Case, progress: Progress) -> Attempt:
        clock, photos, tries = case.budget.clock(), case[LabelledPhotos], []

        def tell(share: float, words: str) -> None:
            progress(clock.share, words)

        for start in STARTS:
            model = self.prepare(case, start)
            recipe = self.recipe(case, max(1, case.budget.steps // 10))
            tries.append((train(model, photos, recipe, clock, tell, case.seed).last, model))
        first, model = min(tries, key=lambda one: one[0])
        before = copy.deepcopy(model.state_dict())
        rest = self.recipe(case, case.budget.steps - clock.steps)
        if not train(model, photos, rest, clock, tell, case.seed + 1).last <= first:  # one that diverged gives nan
            model.load_state_dict(before)
        return Attempt(model=model, exhausted=clock.out_of_time)


@register
class SubstituteLayer(Substitute):
    """Put a learnable c x c matrix where each encryptor would be, and train nothing but these.

    The matrices stay free, and are no guess at the key: they may make up for what could not be found of it.
    """

    name, title, lr = 'substitute-layer', 'substitute key layers, jointly', 0.02


@register
class SubstituteSinkhorn(Substitute):
    """Learn a doubly stochastic matrix at every point and cool it down to a permutation.

    The search stays in the hull of the key's own kind, so that the final rounding loses little. Signs are soft signs; a
    rotation is learned as a matrix exponential within its blocks. All points learn together.
    """

    name, title, lr = 'substitute-sinkhorn', 'soft permutations by Sinkhorn', 0.03
    source = 'Pena et al., Sinkhorn Re-Basin, CVPR 2023'
    cost = 'as long as training for the same steps, and in each 20 normalisations of every c x c table'

    def run(self, case: Case, progress: Progress) -> Attempt:
        rng, photos = np.random.default_rng(case.seed), case[LabelledPhotos]
        model = with_stand_ins(case, partial(SoftMap, rng=rng))
        parts: Any = list(model.get_submodule(PARTS).children())

        def cool(share: float, words: str) -> None:
            for part in parts:
                part.anneal(share)
            progress(share, words)

        course = train(model, photos, self.recipe(case, case.budget.steps), case.budget.clock(), cool, case.seed)
        return Attempt({part.point.entry.point: part.rounded() for part in parts}, exhausted=course.exhausted)


@register
class SubstituteBlocks(Substitute):
    """Put a learnable map of the blocks where each encryptor would be, and train nothing but these.

    A shuffle of a block of b by b positions and c channels is a matrix of c b b values to a side, a negative/positive
    transform a scale for each of them. Blocks of more than 4096 values get scales only.
    """

    name, title = 'substitute-blocks', 'substitute block layers, jointly'
    kind = 'retrain'
    against = frozenset({Target.BLOCKS})

    def prepare(self, case: Case, start: str) -> nn.Module:
        return with_stand_ins(case, partial(block_stand_in, start=start))


@register
class SubstituteCipher(Substitute):
    """Put something learnable where the images would be encrypted, and train nothing but that, on plain images.

    It is an affine map of a block's values for SHF and for patch embeddings, scales and offsets for NP, and a table of
    bytes with a choice of places for FFX.
    """

    name, title, lr = 'substitute-cipher', 'a learnt substitute for the encryption of images', 0.02
    kind = 'retrain'
    against = frozenset({Target.IMAGES})
    learnt = 'change.'

    def prepare(self, case: Case, start: str) -> nn.Module:
        return WithInput(case.model(), image_stand_in(case[ImageEncryption], start))
