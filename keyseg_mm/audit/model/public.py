"""Before a model is locked: which of its layers are so close to public weights that the lock could not hide them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from keyseg_mm.audit.model.loading import read_public
from keyseg_mm.audit.model.spectra import by_model_names, layer_distances
from keyseg_mm.entries import MapEntry
from keyseg_mm.errors import KeysegError
from keyseg_mm.locking import unwrap

_RELATED = 1.0  # relative difference; unrelated weights of one size differ by the square root of 2


def public_for(path: Path, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Public weights of a file, by the names of a model's own.

    Raises:
        KeysegError: unreadable, protected, or of another model.
    """
    found = by_model_names(unwrap(read_public(path, torch.device('cpu'))), weights)
    if not any(found[name].shape == weights[name].shape for name in found):
        raise KeysegError(
            f'{path} has no weights in common with this model; --public takes those it was trained from, whole or the '
            'backbone alone'
        )
    return found


def distances_to_public(
    entries: Sequence[MapEntry], weights: Mapping[str, Tensor], public: Mapping[str, Tensor]
) -> dict[str, float]:
    """How far the weights that are to be locked are from the public ones, by name, the nearest first.

    They are compared by their singular values, as an attacker would compare the locked ones. But large layers of random
    weights have much the same ones without having anything to do with each other, and here the plain weights tell.

    Args:
        entries: of a plan.
        weights: the plain weights.
        public: from :func:`public_for`.
    """
    found = layer_distances(entries, weights, public)
    found = {name: max(value, _unrelated(weights[name], public[name])) for name, value in found.items()}
    return dict(sorted(found.items(), key=lambda item: item[1]))


def _unrelated(ours: Tensor, theirs: Tensor) -> float:
    """The relative difference of two weights if it is that of unrelated ones, else 0."""
    apart = float((ours.double() - theirs.double()).norm() / theirs.double().norm().clamp_min(1e-12))
    return apart if apart > _RELATED else 0.0
