"""What the key leaves as it is: how the values of a block vary together, and which way round an image is."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from keyseg_mm.audit.images.scheme import Blocks, Images, block_map, cut

Floats = NDArray[np.float32]
TOP = 255
#: Values of a block up to which pairs of its places are compared (M = 32): beyond, matrices of places need gigabytes.
MOST_VALUES = 3072
_ENOUGH = 50_000_000
_ITERATIONS = 100


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
