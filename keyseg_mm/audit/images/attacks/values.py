"""What the key leaves as it is: how the values of a block vary together, and which way round an image is."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter  # type: ignore[import-untyped]
from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]

from keyseg_mm.audit.engine.attack import Progress
from keyseg_mm.audit.images.attack import (
    BYTES,
    Blocks,
    ImageAttack,
    ImageCase,
    Images,
    KnownPairs,
    OwnPhotos,
    Restored,
    Scheme,
    block_map,
    cut,
    register,
)
from keyseg_mm.maps.pixels import BlockCipher

Floats = NDArray[np.float32]
TOP = 255
#: Values of a block up to which pairs of its places are compared (M = 32): beyond, matrices of places need gigabytes.
MOST_VALUES = 3072
_ENOUGH = 50_000_000
_ITERATIONS = 100
_ACROSS = 0.05  # weight of another colour's value against one of the same colour
Columns = NDArray[np.uint8]  # (3 M M, number of blocks): all values that one place of a block ever had


def enough(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The first of many large images, or of their blocks: more than so many values tell a statistic nothing new."""
    return images[: max(1, _ENOUGH // images[0].size)]


def first_direction(blocks: Blocks, alike: bool = False) -> NDArray[np.float64]:
    """In which direction the values of blocks vary most, (3 M M,): the first eigenvector of their covariance.

    By power iteration on the values themselves, as the covariance of a large block is larger than all of them.

    Args:
        blocks: of encrypted images.
        alike: of the correlations in the place of the covariance: each place counts alike.
    """
    flat = enough(blocks).reshape(-1, blocks.shape[-1]).astype(np.float32)
    flat = flat - flat.mean(0)
    if alike:
        flat = flat / (flat.std(0) + 1e-6)
    vector = np.random.default_rng(0).normal(size=flat.shape[1]).astype(np.float32)
    for _ in range(_ITERATIONS):
        vector = flat.T @ (flat @ vector)
        vector = vector / (np.linalg.norm(vector) + 1e-12)
    return np.asarray(vector, dtype=np.float64)


def negated_places(images: Images, block: int, public: Images | None) -> NDArray[np.bool_]:
    """Which places of a block are negated, (3 M M,), where values may have changed places within it, too.

    In photos the values of a block all rise and fall together, more or less, so they vary most in a direction of one
    sign; with some of them negated, its signs split the places in two groups. Which of the two is negated is one bit:
    photos differ from negatives.
    """
    group = first_direction(cut(images, block)) < 0
    plain = block_map(block, changed=group).decrypt(images)
    return np.asarray(group if upright(plain, public) else ~group)


def upright(images: Images, public: Images | None) -> bool:
    """Whether images look like photos rather than like negatives of photos.

    With photos at hand, by which of both the mean image and the spread of values are more like theirs. Without, by two
    habits of photos: light comes from above, and there is more shade than glare.
    """
    values = enough(images).astype(np.float32)
    rows = values.mean((0, 2, 3))
    if public is None:
        half = len(rows) // 2
        return float(rows[:half].mean() - rows[half:].mean() + 2 * (TOP / 2 - values.mean())) >= 0
    mean, theirs = values.mean(0), enough(public).astype(np.float32).mean(0)
    alike = float((mean - mean.mean()).ravel() @ (theirs - theirs.mean()).ravel())
    level = float(abs(TOP - mean.mean() - theirs.mean()) - abs(mean.mean() - theirs.mean()))
    return bool(alike / (mean.std() * theirs.std() * mean.size + 1e-6) + level / TOP >= 0)


@register
class CorrelationSigns(ImageAttack):
    """All blocks are negated at the same places, and neighbouring values of photos rise and fall together.

    So two places are negated alike if they correlate, and differently if they anti-correlate. The first eigenvector of
    the covariance of all places splits them in two groups; which of the two is the negated one is a single bit, and
    photos differ from negatives: the sky is bright. If blocks have an odd number of values, the smaller group is it.
    """

    name, title = 'correlation-signs', 'negated places from the signs of correlations'
    helped_by = frozenset({OwnPhotos})
    source = 'worked out for this audit'
    cost = 'one eigenvector of 3 M M values'

    @classmethod
    def possible(cls, case: ImageCase) -> bool:
        return case.scheme.negates and case.scheme.moves == 'none'

    def run(self, case: ImageCase, progress: Progress) -> Restored:
        """Find the places, and undo."""
        scheme, n = case.scheme, case.scheme.values
        changed = negated_places(case.encrypted, scheme.block, case.photos)
        if scheme.method == 'NP' and n % 2:
            changed = min(changed, ~changed, key=np.sum)
        guess = block_map(scheme.block, changed=changed)
        return Restored(guess.decrypt(case.encrypted), guess)


@register
class ByteStatistics(ImageAttack):
    """Half of the places keep their values; they correlate with each other, and no others do so as strongly.

    1. The half of the places with the largest entries in the first eigenvector of the correlations is taken for
       untouched.
    2. The values of the other places are interpolated from those, which alone gives most of the image.
    3. For each encrypted byte the mean of what was interpolated where it stands says about which value it was. The
       table is the best assignment (Hungarian).
    """

    name, title = 'byte-statistics', 'untouched places from correlations, bytes by interpolation'
    source = 'worked out for this audit, after frequency analysis of substitution ciphers'
    cost = 'one eigenvector of 3 M M values, and an assignment of 256 bytes'

    @classmethod
    def possible(cls, case: ImageCase) -> bool:
        return case.scheme.maps_bytes

    def run(self, case: ImageCase, progress: Progress) -> Restored:
        """Split, interpolate, assign."""
        scheme, n = case.scheme, case.scheme.values
        some = enough(case.encrypted)
        changed = np.ones(n, dtype=bool)
        direction = np.abs(first_direction(cut(some, scheme.block), alike=True))
        changed[np.argsort(-direction, kind='stable')[: n - n // 2]] = False
        tiles = some.shape[1] // scheme.block, some.shape[2] // scheme.block, 1
        where = np.broadcast_to(np.tile(changed.reshape(scheme.block, scheme.block, -1), tiles), some.shape)
        table = _table(some[where], _interpolated(some.astype(np.float32), ~where)[where])
        guess = block_map(scheme.block, changed=changed, table=table)
        return Restored(guess.decrypt(case.encrypted), guess)


def _blurred(values: Floats, sigma: float) -> Floats:
    """Values (N, H, W, 3) as Gaussian means of those around, each colour by itself."""
    return np.asarray(gaussian_filter(values, (0, sigma, sigma, 0), mode='nearest'), dtype=np.float32)


def _interpolated(values: Floats, known: NDArray[np.bool_]) -> Floats:
    """Values (N, H, W, 3) where they are not known, as means of the known ones around, near ones first.

    Those of the other colours count little, and only decide where none of the same colour is near.
    """
    weights = known.astype(np.float32)
    total, mass = np.zeros_like(values), np.zeros_like(values)
    for sigma, share in ((0.7, 1.0), (1.5, 0.1), (4.0, 1e-3), (16.0, 1e-6)):
        above, below = _blurred(values * weights, sigma), _blurred(weights, sigma)
        total += share * (above + _ACROSS * above.sum(-1, keepdims=True))
        mass += share * (below + _ACROSS * below.sum(-1, keepdims=True))
    return np.asarray(total / np.maximum(mass, 1e-12), dtype=np.float32)


def _table(encrypted: NDArray[np.uint8], plain: Floats) -> NDArray[np.int64]:
    """The permutation of bytes that goes best with encrypted bytes and about what they were."""
    counts = np.bincount(encrypted, minlength=BYTES)
    means = np.bincount(encrypted, plain, BYTES) / np.maximum(counts, 1)
    costs = np.where(counts > 0, (np.arange(BYTES)[:, None] - means) ** 2, 0.0)
    return np.asarray(linear_sum_assignment(costs)[1], dtype=np.int64)


@register
class PairSolving(ImageAttack):
    """Every block is encrypted alike, so a place of the encrypted blocks shows all values of one place of the plain.

    Permutations: the place whose values, over all blocks of the pairs, are exactly the same (or all negated). Byte
    tables: each pair of a plain and an encrypted byte is an entry. Places that had equal values in all blocks cannot
    be told apart, and are given out in order; bytes that did not occur likewise.
    """

    name, title = 'known-pairs', 'the cipher solved from known pairs'
    needs = frozenset({KnownPairs})
    source = 'known-plaintext attack, as in any textbook on ciphers'
    cost = 'a comparison of columns'

    def run(self, case: ImageCase, progress: Progress) -> Restored:
        """Solve, and decrypt."""
        known = case[KnownPairs]
        guess = solve(case.scheme, *(_columns(images, case.scheme.block) for images in (known.plain, known.encrypted)))
        return Restored(guess.decrypt(case.encrypted), guess)


def solve(scheme: Scheme, plain: Columns, encrypted: Columns) -> BlockCipher:
    """The map of blocks that turns plain columns into encrypted ones."""
    if scheme.moves == 'none':
        changed = (plain != encrypted).any(1)
        table = _known_table(plain[changed], encrypted[changed]) if scheme.maps_bytes else None
        return block_map(scheme.block, changed=changed, table=table)
    order, changed = _matched(plain, encrypted, scheme.negates)
    return block_map(scheme.block, order, changed)


def _columns(images: NDArray[np.uint8], block: int) -> Columns:
    blocks = cut(images, block)
    return np.ascontiguousarray(blocks.reshape(-1, blocks.shape[-1]).T)


def _matched(plain: Columns, encrypted: Columns, negated: bool) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """For each encrypted column the plain one that it is, and whether it is negated."""
    places: dict[bytes, list[int]] = {}
    for number in range(len(plain) - 1, -1, -1):
        places.setdefault(plain[number].tobytes(), []).append(number)
    order, changed = np.full(len(plain), -1), np.zeros(len(plain), dtype=bool)
    for number, column in enumerate(encrypted):
        for flip in (False, True)[: 1 + negated]:
            found = places.get((255 - column if flip else column).tobytes())
            if found:
                order[number], changed[number] = found.pop(), flip
                break
    left = sorted(set(range(len(plain))) - set(order.tolist()))
    order[order < 0] = left
    return order, changed


def _known_table(plain: Columns, encrypted: Columns) -> NDArray[np.int64]:
    """The byte table that pairs show; entries that none shows are filled with what is left, in order."""
    table = np.full(BYTES, -1)
    table[plain.ravel()] = encrypted.ravel()
    table[table < 0] = sorted(set(range(BYTES)) - set(table.tolist()))
    return table
