"""How close a protected layer still is to public weights, which no orthogonal map at its input can hide.

A lock turns ``W`` into ``W T^-1``. Singular values do not change under that, so those of the protected layer can be
compared with those of a public one by anybody: their distance is a lower bound of ``min_T ||W' T - P||`` over all
orthogonal T (Mirsky 1960). A layer that is close can be realigned to the public weights, and with it the key comes out.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from keyseg_mm.audit.model.attack import carriers
from keyseg_mm.audit.model.loading import read_public
from keyseg_mm.entries import MapEntry
from keyseg_mm.errors import KeysegError
from keyseg_mm.locking import unwrap
from keyseg_mm.stamp import Stamp

#: Relative distance below which a layer counts as close.
CLOSE = 0.1
_RELATED = 1.0  # relative difference; unrelated weights of one size differ by the square root of 2
_LARGEST = 2048  # channels; above this the decomposition takes long and one figure more says little


def distances(stamp: Stamp, weights: Mapping[str, Tensor], public: Mapping[str, Tensor]) -> dict[str, float]:
    """Relative distance of singular values, by point, of the layers that carry or read it: the least of them.

    Args:
        stamp: the stamp. An ``out:`` point of a model that was trained with the key names no layers, and is left out.
        weights: the protected state_dict.
        public: public plain weights; layers that they lack, or have in another shape, are left out.

    Returns:
        0 where a layer can be turned into the public one, 1 where they have nothing in common.
    """
    by_layer = layer_distances(stamp.maps, weights, public)
    found = {entry.point: [by_layer[n] for n in carriers(entry) if n in by_layer] for entry in stamp.maps}
    return {point: min(values) for point, values in found.items() if values}


def layer_distances(
    entries: Iterable[MapEntry], weights: Mapping[str, Tensor], public: Mapping[str, Tensor]
) -> dict[str, float]:
    """The same by weight, of all weights that carry the transforms of some entries.

    Args:
        entries: of a plan, made or yet to be locked.
        weights: protected or plain: it makes no difference to singular values.
        public: as in :func:`distances`.
    """
    found = {}
    for name in dict.fromkeys(name for entry in entries for name in carriers(entry)):
        ours, theirs = weights.get(name), public.get(name)
        if ours is None or theirs is None or ours.shape != theirs.shape or ours.dim() < 2:
            continue
        if ours.shape[1] <= _LARGEST:
            a, b = _spectrum(ours), _spectrum(theirs)
            found[name] = float((a - b).norm() / b.norm().clamp_min(1e-12))
    return found


def by_model_names(public: Mapping[str, Tensor], names: Container[str]) -> dict[str, Tensor]:
    """Public weights by the names of a whole model's: files of pretrained backbones have the backbone's own names.

    Returns:
        Those that the model knows; empty if it knows none.
    """
    tries = ({prefix + name: value for name, value in public.items()} for prefix in ('', 'backbone.'))
    return max(({n: v for n, v in known.items() if n in names} for known in tries), key=len)


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


def _spectrum(weight: Tensor) -> Tensor:
    """Singular values of a weight as a map of its input channels, by the Gram matrix of these."""
    columns = weight.detach().double().movedim(1, 0).flatten(1)  # (in, out * window)
    values: Tensor = torch.linalg.eigvalsh(columns @ columns.T)
    return values.clamp_min(0).sqrt()


def _unrelated(ours: Tensor, theirs: Tensor) -> float:
    """The relative difference of two weights if it is that of unrelated ones, else 0."""
    apart = float((ours.double() - theirs.double()).norm() / theirs.double().norm().clamp_min(1e-12))
    return apart if apart > _RELATED else 0.0
