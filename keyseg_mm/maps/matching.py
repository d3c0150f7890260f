"""Which channel of one weight is which of another: cosines, and the assignment of the largest total."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]


def assign(score: NDArray[Any]) -> NDArray[np.int64]:
    """The permutation of the largest total score (Kuhn 1955): ``table[i] = j`` for the pairs (i, j) chosen."""
    return np.asarray(linear_sum_assignment(-np.nan_to_num(score))[1], dtype=np.int64)


def unit(rows: NDArray[Any]) -> NDArray[Any]:
    """Rows of length 1, so that a rescaled channel matches as well as before."""
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12))
