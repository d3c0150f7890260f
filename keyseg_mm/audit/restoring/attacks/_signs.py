"""Which places of a block are negated, from the signs of correlations."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from keyseg_mm.audit.restoring.attacks._statistics import enough, upright
from keyseg_mm.audit.restoring.scheme import BlockMap, Blocks, Images

Bools = NDArray[np.bool_]

_ITERATIONS = 100


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


def split_by_sign(blocks: Blocks) -> Bools:
    """The places of a block in two groups, of which one is negated; which one stays open.

    In photos the values of a block all rise and fall together, more or less, so they vary most in a direction of one
    sign; with some of them negated, its signs tell which.
    """
    return np.asarray(first_direction(blocks) < 0)


def half_of(scores: NDArray[np.float64], count: int) -> Bools:
    """The so many places with the largest scores."""
    chosen = np.zeros(len(scores), dtype=bool)
    chosen[np.argsort(-scores, kind='stable')[:count]] = True
    return chosen


def which_way(encrypted: Images, maps: list[BlockMap], public: Images | None) -> BlockMap:
    """Of two maps whose decryptions are each other's negatives, the one that gives photos."""
    return maps[0] if upright(maps[0].decrypt(encrypted), public) else maps[1]
