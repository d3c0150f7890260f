"""What a found file's weights say: how each differs from the original's, weighted by how much that tells.

The weighting looks at the differences and at no pattern. So for whoever was no part of the file its patterns are as
good as drawn afterwards, and the sum of the products has the mean 0 and the variance 1 that chance gives.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keyseg_mm.tracing.align import Aligned, Weight, align

_CLIP = 2.5  # robust standard deviations: a weight that was moved far, or set to zero, tells nothing
_FITS = 6
_LEAST = 1e-5  # of a tensor's size: below that a difference is rounding
_SAMPLE = 200_000
_TO_STD = 1.4826  # a normal distribution's standard deviation by its median absolute value


@dataclass(frozen=True)
class Evidence:
    """What one weight of the original tells.

    Attributes:
        name: in the original.
        values: a number for each of its values, in the order of their indices.
        density: what each value tells, up to a factor that all tensors have: (size / spread) squared.
        moved: whether channels had to be put into another order.
    """

    name: str
    values: NDArray[np.float32]
    density: float
    moved: bool

    @property
    def information(self) -> float:
        """What all of it tells."""
        return self.density * len(self.values)


def gather(found: Mapping[str, Any], original: Mapping[str, Any]) -> list[Evidence]:
    """The evidence of all weights that a found file and the original have in common.

    Args:
        found: tensors by name.
        original: the plain state_dict, without the prefix of data-parallel runs.
    """
    return [evidence for pair in align(found, original) if (evidence := _weigh(pair)) is not None]


def _weigh(pair: Aligned) -> Evidence | None:
    difference = _difference(pair.found, pair.original).ravel()
    sizes = np.abs(difference[:: max(1, len(difference) // _SAMPLE)])
    sizes = sizes[sizes > 0]
    size = float(np.sqrt(np.mean(pair.original**2)))
    if not len(sizes) or not np.isfinite(size) or not size:
        return None
    spread = max(_TO_STD * float(np.median(sizes)), _LEAST * size)
    values = np.clip(difference, -_CLIP * spread, _CLIP * spread) * np.float32(size / spread**2)
    return Evidence(pair.name, values.astype(np.float32, copy=False), (size / spread) ** 2, pair.moved)


def _difference(found: Weight, original: Weight) -> Weight:
    """Found less original, with rows and columns brought to the original's scale; 0 where the found weight is 0.

    The scales are those of the least squares, over what is left of the weights.
    """
    kept = found != 0
    products = np.einsum('oik,oik->oi', found, original).astype(np.float64)
    squares = np.einsum('oik,oik->oi', original * kept, original).astype(np.float64)
    rows, columns = np.ones(products.shape[0]), np.ones(products.shape[1])
    for _ in range(_FITS):
        rows = products @ columns / np.maximum(squares @ columns**2, 1e-30)
        if len(columns) > 1:
            columns = products.T @ rows / np.maximum(squares.T @ rows**2, 1e-30)
    scales = (rows[:, None] * columns).astype(np.float32)
    known = np.abs(scales) > 1e-12
    scales = np.where(known, scales, 1)[:, :, None]
    difference = np.where(kept & known[:, :, None], found / scales - original, 0)
    return np.nan_to_num(difference, nan=0.0, posinf=0.0, neginf=0.0).astype(np.float32)


def moved_share(evidence: Iterable[Evidence]) -> float:
    """The share of weights whose channels had to be put into another order."""
    found = list(evidence)
    return sum(one.moved for one in found) / max(1, len(found))
