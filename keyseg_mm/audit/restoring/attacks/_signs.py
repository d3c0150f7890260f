"""Which places of a block are negated, from the signs of correlations."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from keyseg_mm.audit.restoring.attacks._statistics import upright
from keyseg_mm.audit.restoring.scheme import BlockMap, Blocks, Images

Bools = NDArray[np.bool_]


def covariance(blocks: Blocks) -> NDArray[np.float64]:
    """Of the values at each two places of a block, (3 M M, 3 M M)."""
    flat = blocks.reshape(-1, blocks.shape[-1]).astype(np.float32)
    flat = flat - flat.mean(0)
    return np.asarray(flat.T @ flat / len(flat), dtype=np.float64)


def split_by_sign(blocks: Blocks) -> Bools:
    """The places of a block in two groups, of which one is negated; which one stays open.

    In photos the values of a block all rise and fall together, more or less, so the first eigenvector of their
    covariance has one sign; with some of them negated, its signs tell which.
    """
    _, vectors = np.linalg.eigh(covariance(blocks))
    return np.asarray(vectors[:, -1] < 0)


def half_of(scores: NDArray[np.float64], count: int) -> Bools:
    """The so many places with the largest scores."""
    chosen = np.zeros(len(scores), dtype=bool)
    chosen[np.argsort(-scores, kind='stable')[:count]] = True
    return chosen


def which_way(encrypted: Images, maps: list[BlockMap], public: Images | None) -> BlockMap:
    """Of two maps whose decryptions are each other's negatives, the one that gives photos."""
    return maps[0] if upright(maps[0].decrypt(encrypted), public) else maps[1]
