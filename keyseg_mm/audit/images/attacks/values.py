"""Values that stay in their places: negated ones from correlations, and byte tables from what lies between."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter  # type: ignore[import-untyped]
from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]

from keyseg_mm.audit.engine.budget import Progress
from keyseg_mm.audit.images.attack import ImageAttack, ImageCase, OwnPhotos, Restored, register
from keyseg_mm.audit.images.attacks.statistics import Floats, enough, first_direction, negated_places
from keyseg_mm.audit.images.scheme import BYTES, Images, Scheme, block_map, cut

_ROUNDS = 4
_ACROSS = 0.05  # weight of another colour's value against one of the same colour
_SPREAD = 1.5  # grey levels by which the mean of what was interpolated for a byte is off
_RARITY = 0.02  # weight of how often bytes occur, against that


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
    def fits(cls, scheme: Scheme) -> bool:
        """Where values are negated, and stay in their places."""
        return scheme.negates and scheme.moves == 'none'

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
    3. For each encrypted byte the mean of what was interpolated where it stands, even areas first, says about which
       value it was; how often it occurs says the rest, as that value occurs about as often at untouched places. The
       table is the best assignment (Hungarian). With it the places are decrypted, interpolation gets better, and the
       table is made anew.
    """

    name, title = 'byte-statistics', 'untouched places from correlations, bytes by interpolation'
    source = 'worked out for this audit, after frequency analysis of substitution ciphers'
    cost = 'one eigenvector of 3 M M values, and a few assignments of 256 bytes'

    @classmethod
    def fits(cls, scheme: Scheme) -> bool:
        """Where bytes are mapped, and stay in their places."""
        return scheme.maps_bytes

    def run(self, case: ImageCase, progress: Progress) -> Restored:
        """Split, interpolate, count, repeat."""
        scheme, n = case.scheme, case.scheme.values
        some = enough(case.encrypted)
        blocks = cut(some, scheme.block)
        changed = np.ones(n, dtype=bool)
        changed[np.argsort(-np.abs(first_direction(blocks, alike=True)), kind='stable')[: n - n // 2]] = False
        where = _tiled(changed, some, scheme.block)
        between = _interpolated(some.astype(np.float32), ~where)
        usual = np.bincount(some[~where], minlength=BYTES).astype(np.float32)
        for number in range(_ROUNDS):
            progress(number / _ROUNDS, f'round {number + 1}')
            table = _table(some[where], between[where], _evenness(between)[where], usual)
            guess = block_map(scheme.block, changed=changed, table=table)
            if number < _ROUNDS - 1:
                between = _around(guess.decrypt(some).astype(np.float32), where)
        return Restored(guess.decrypt(case.encrypted), guess)


def _tiled(places: NDArray[np.bool_], images: Images, block: int) -> NDArray[np.bool_]:
    """Places of a block as a mask of whole images."""
    mask = np.tile(places.reshape(block, block, -1), (images.shape[1] // block, images.shape[2] // block, 1))
    return np.broadcast_to(mask, images.shape)


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


def _evenness(values: Floats) -> Floats:
    """Weights of values (N, H, W, 3), by how little those around differ."""
    spread = np.maximum(_blurred(values**2, 1.0) - _blurred(values, 1.0) ** 2, 0)
    return np.asarray(1 / (4.0 + spread), dtype=np.float32)


def _around(values: Floats, where: NDArray[np.bool_]) -> Floats:
    """Each value as the mean of its neighbours, without itself; untouched neighbours count three times."""
    weights = np.where(where, 1.0, 3.0).astype(np.float32)
    own = gaussian_filter(np.eye(1, 9, 4, dtype=np.float32), (0, 0.7))[0, 4] ** 2
    above, below = (_blurred(x, 0.7) - own * x for x in (values * weights, weights))
    return np.asarray(above / np.maximum(below, 1e-6), dtype=np.float32)


def _table(encrypted: NDArray[np.uint8], plain: Floats, sure: Floats, usual: Floats) -> NDArray[np.int64]:
    """The permutation of bytes that goes best with encrypted bytes and about what they were.

    Args:
        encrypted: bytes at the changed places.
        plain: what was interpolated there.
        sure: weights of that, larger where the image is even.
        usual: how often each value occurs at the untouched places, shape (256,).
    """
    mass = np.bincount(encrypted, sure, BYTES)
    means = np.bincount(encrypted, sure * plain, BYTES) / np.maximum(mass, 1e-9)
    counts = np.bincount(encrypted, minlength=BYTES).astype(np.float64)
    # the same photo's values at other places: nearly as many of each
    usual = usual * counts.sum() / max(usual.sum(), 1.0)
    rarity = (np.sqrt(usual)[:, None] - np.sqrt(counts)[None]) ** 2
    distance = (np.arange(BYTES)[:, None] - means[None]) ** 2
    costs = np.where(counts[None] > 0, distance / _SPREAD**2, 0.0) + _RARITY * rarity
    rows, columns = linear_sum_assignment(costs)
    found = np.empty(BYTES, dtype=np.int64)
    found[rows] = columns
    return found
