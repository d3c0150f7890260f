"""Values that stay in their places: negated ones from correlations, and byte tables from what lies between."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter  # type: ignore[import-untyped]
from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]

from keyseg_mm.audit.engine.budget import Progress
from keyseg_mm.audit.images.attack import ImageAttack, ImageCase, OwnPhotos, Restored, register
from keyseg_mm.audit.images.attacks.statistics import Floats, enough, first_direction, negated_places
from keyseg_mm.audit.images.scheme import BYTES, block_map, cut

_ACROSS = 0.05  # weight of another colour's value against one of the same colour


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
