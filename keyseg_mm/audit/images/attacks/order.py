"""The order of a block's values, by comparing how they vary together with how values of photos, or of noise, do.

Statistics of two kinds, none of which the permutation changes except by permuting it:

- how each place of a block goes with the means of the blocks around: what lies at the left goes with the left;
- how much the values at two places differ, within a block, and from a block to the next at the right and below
  (variograms). Small differences mean near places of the same colour; across the border of two blocks they tell left
  from right, which within a block nothing does.

The order is the permutation under which the encrypted statistics are most like those of photos: a quadratic assignment
problem, solved from the first kind's linear assignment by the FAQ algorithm (Vogelstein et al., PLOS ONE 10(4), 2015).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]

from keyseg_mm.audit.engine.attack import Clock, Progress
from keyseg_mm.audit.images.attack import (
    Blocks,
    ImageAttack,
    ImageCase,
    Images,
    OwnPhotos,
    Restored,
    block_map,
    cut,
    register,
)
from keyseg_mm.audit.images.attacks.values import MOST_VALUES, TOP, Floats, enough, negated_places
from keyseg_mm.maps.pixels import COLOURS

Order = NDArray[np.int64]

_REACH = 2  # blocks around, in each direction
_WIDTHS = (1.0, 0.3)  # of the kernels, in medians of the squared differences within a block
_TRIES = 30  # Frank-Wolfe steps for each width
_STILL = 1e-4  # a step shorter than this ends it
_PICTURES = 32
_FALL = 1.2  # amplitude ~ 1 / frequency^1.2: Tolhurst, Tadmor and Chao 1992 found 0.8 to 1.5 in photos
_TINT = 0.25  # how much colours differ, against what they have in common
_LEVEL, _CONTRAST = 110, 55


@register
class NeighbourOrder(ImageAttack):
    """Values of photos vary together in a known way, the nearer the more, and all blocks are permuted alike.

    So the permutation can be read off the encrypted images, see :mod:`keyseg_mm.audit.images.attacks.order`. Without
    photos to compare with, coloured noise does: the spectrum of photos falls about as 1 / frequency, and their colours
    have most in common. Noise has no favourite colour, so images may come out with colours exchanged. Where values are
    negated too, the signs are found first, as by :class:`~.values.CorrelationSigns`.
    """

    name, title = 'neighbour-order', 'values ordered by neighbourhood'
    helped_by = frozenset({OwnPhotos})
    source = (
        'worked out for this audit: a jigsaw of correlations, solved by FAQ (Vogelstein et al. 2015), after photos or '
        'the spectrum of natural images (Field 1987)'
    )
    cost = 'some twenty assignments of 3 M M values: seconds at M = 16, minutes at M = 32, the largest'

    @classmethod
    def possible(cls, case: ImageCase) -> bool:
        return case.scheme.moves != 'none' and case.scheme.values <= MOST_VALUES

    def run(self, case: ImageCase, progress: Progress) -> Restored:
        """Decrypt with the order under which encrypted values go together as those of photos do."""
        block, changed, images = case.scheme.block, None, case.encrypted
        if case.scheme.negates:
            # a permutation within blocks leaves photos as unlike their negatives as they were
            changed = negated_places(images, block, case.photos)
            images = block_map(block, changed=changed).decrypt(images)
        like = case.photos
        if like is None:
            like = noise(_PICTURES, images.shape[1:3], np.random.default_rng(case.seed))
        order, late = find_order(cut(images, block), cut(like, block), case.scheme.moves, case.budget.clock(), progress)
        guess = block_map(block, order, changed)
        return Restored(guess.decrypt(case.encrypted), guess, exhausted=late)


def noise(count: int, size: tuple[int, ...], rng: np.random.Generator) -> Images:
    """Pictures (N, H, W, 3) of coloured noise with the spectrum of photos."""
    frequency = np.hypot(np.fft.fftfreq(size[0])[:, None], np.fft.fftfreq(size[1])[None])
    frequency[0, 0] = 1 / max(size)
    spectra = np.fft.fft2(rng.normal(size=(count, 1 + COLOURS, *size))) / frequency**_FALL
    drawn = np.fft.ifft2(spectra).real
    pictures = np.moveaxis(drawn[:, :1] + _TINT * drawn[:, 1:], 1, -1)
    pictures -= pictures.mean((1, 2, 3), keepdims=True)
    values = _LEVEL + _CONTRAST * pictures / pictures.std((1, 2, 3), keepdims=True)
    return np.asarray(np.clip(np.rint(values), 0, TOP), dtype=np.uint8)


class Statistics:
    """What is compared of blocks.

    Args:
        blocks: of encrypted images or of photos.

    Attributes:
        places: (3 M M, F), what tells places apart one by one.
        differences: three (3 M M, 3 M M): mean squared differences within, to the right, and to below.
    """

    def __init__(self, blocks: Blocks) -> None:
        values = blocks.astype(np.float32)
        means = values.mean(-1)
        rest = values - means[..., None]
        scale = float(rest.std()) + 1e-6
        rest = rest / scale
        around = _around(means)
        around = around / (float(around.std()) + 1e-6)
        flat = rest.reshape(-1, rest.shape[-1])
        self.places = np.concatenate(
            [flat.T @ around.reshape(len(flat), -1) / len(flat), flat.mean(0)[:, None], flat.std(0)[:, None]], axis=1
        )
        values = values / scale
        pairs = ((values, values), (values[:, :, :-1], values[:, :, 1:]), (values[:, :-1], values[:, 1:]))
        self.differences = [_differences(a, b) for a, b in pairs]

    def kernels(self, width: float) -> list[Floats]:
        """Nearness, 0 to 1, from differences."""
        unit = width * float(np.median(self.differences[0])) + 1e-9
        return [np.exp(-d / unit) for d in self.differences]


def find_order(
    encrypted: Blocks, photos: Blocks, moves: str, clock: Clock, tell: Callable[[float, str], None]
) -> tuple[Order, bool]:
    """The order of encrypted blocks, ``e[k] = v[order[k]]``, by blocks of photos.

    Returns:
        The order, and whether time ran out.
    """
    theirs, own = Statistics(enough(encrypted)), Statistics(enough(photos))
    colours = np.arange(encrypted.shape[-1]) % COLOURS
    allowed = ((colours[:, None] == colours[None]) | (moves != 'channel')).astype(np.float32)
    spread = own.places.std(0) + 1e-3 * own.places.std()
    a, b = theirs.places / spread, own.places / spread
    costs = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T
    order = _assigned(-costs, allowed)
    soft = 0.5 * _matrix(order) + 0.5 * allowed / allowed.sum(1, keepdims=True)
    for number, width in enumerate(_WIDTHS):
        pairs = list(zip(theirs.kernels(width), own.kernels(width)))
        for step in range(_TRIES):
            if clock.out_of_time:
                return order, True
            tell((number + step / _TRIES) / len(_WIDTHS), f'width {width:g}, step {step}')
            soft, moved = _step(pairs, soft, allowed)
            if moved < _STILL:
                break
        order = _assigned(soft, allowed)
        soft = _matrix(order)
    return order, False


def _step(pairs: Sequence[tuple[Floats, Floats]], soft: Floats, allowed: Floats) -> tuple[Floats, float]:
    """One Frank-Wolfe step that makes sum tr(A' P B P') larger; the new P, and how far it went."""
    gradient = sum((a @ (soft @ b.T) + a.T @ (soft @ b) for a, b in pairs), np.zeros_like(soft))
    way = _matrix(_assigned(gradient, allowed)) - soft
    bend = sum(float(np.vdot(a @ way, way @ b)) for a, b in pairs)
    slope = float(np.vdot(gradient, way))
    length = min(1.0, -slope / (2 * bend)) if bend < 0 else float(slope + bend > 0)
    return soft + np.float32(length) * way, length


def _assigned(gains: NDArray[np.floating], allowed: Floats) -> Order:
    rows, columns = linear_sum_assignment(np.where(allowed > 0, -gains, 1e9))
    return np.asarray(columns[np.argsort(rows)], dtype=np.int64)


def _matrix(order: Order) -> Floats:
    return np.eye(len(order), dtype=np.float32)[order]


def _differences(a: Floats, b: Floats) -> Floats:
    """Mean squared difference of each two places, the first in a, the second in b."""
    x, y = (v.reshape(-1, v.shape[-1]) for v in (a, b))
    found: Floats = (x**2).mean(0)[:, None] + (y**2).mean(0)[None] - 2 * (x.T @ y / len(x))
    return np.maximum(found, 0)


def _around(means: Floats) -> Floats:
    """The means of the blocks around each block, less its own: (N, down, across, (2 R + 1)^2)."""
    _, down, across = means.shape
    padded = np.pad(means, ((0, 0), (_REACH, _REACH), (_REACH, _REACH)), mode='edge')
    steps = range(2 * _REACH + 1)
    return np.stack([padded[:, y : y + down, x : x + across] - means for y in steps for x in steps], axis=-1)
