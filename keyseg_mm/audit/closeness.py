"""How close a protected layer still is to public weights, which no orthogonal map at its input can hide.

A lock turns ``W`` into ``W T^-1``. Singular values do not change under that, so those of the protected layer can be
compared with those of a public one by anybody: their distance is a lower bound of ``min_T ||W' T - P||`` over all
orthogonal T (Mirsky 1960). A layer that is close can be realigned to the public weights, and with it the key comes out.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from keyseg_mm.plan import Plan
from keyseg_mm.points import Point

#: Relative distance below which a layer counts as close.
CLOSE = 0.1
_LARGEST = 2048  # channels; above this the decomposition takes long and one figure more says little


def distances(plan: Plan, weights: Mapping[str, Tensor], public: Mapping[str, Tensor]) -> dict[str, float]:
    """Relative distance of singular values, by point, of the layers at the plan's ``in:`` points.

    Args:
        plan: the stamp.
        weights: the protected state_dict.
        public: public plain weights; layers that they lack, or have in another shape, are left out.

    Returns:
        0 where a layer can be turned into the public one, 1 where they have nothing in common.
    """
    found = {}
    for entry in plan.entries:
        point = Point.parse(entry.point)
        name = 'weight' if point.name == '.' else f'{point.name}.weight'
        ours, theirs = weights.get(name), public.get(name)
        if point.side != 'in' or ours is None or theirs is None or ours.shape != theirs.shape or ours.dim() < 2:
            continue
        if ours.shape[1] <= _LARGEST:
            a, b = _spectrum(ours), _spectrum(theirs)
            found[entry.point] = float((a - b).norm() / b.norm().clamp_min(1e-12))
    return found


def close_points(plan: Plan, weights: Mapping[str, Tensor], public: Mapping[str, Tensor]) -> list[str]:
    """Points whose layers are close to public weights: a lock there falls to whoever has those."""
    return [point for point, distance in distances(plan, weights, public).items() if distance < CLOSE]


def _spectrum(weight: Tensor) -> Tensor:
    """Singular values of a weight as a map of its input channels, by the Gram matrix of these."""
    columns = weight.detach().double().movedim(1, 0).flatten(1)  # (in, out * window)
    values: Tensor = torch.linalg.eigvalsh(columns @ columns.T)
    return values.clamp_min(0).sqrt()
