"""What a lock cannot hide: layers that are close to public weights. For `keyseg lock`, before it is too late."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keyseg_mm.errors import KeysegError

if TYPE_CHECKING:
    from keyseg_mm.entries import MapEntry

_NEAREST = 5  # layers named
_RELATED = 1.0  # relative difference; unrelated weights of one size differ by the square root of 2


def read_public_for(path: Path, weights: dict[str, Any]) -> dict[str, Any]:
    """Public weights by the names of the model's own.

    Raises:
        KeysegError: unreadable, protected, or of another model.
    """
    import torch

    from keyseg_mm.audit.model.loading import read_public
    from keyseg_mm.audit.model.spectra import by_model_names
    from keyseg_mm.locking import unwrap

    found = by_model_names(unwrap(read_public(path, torch.device('cpu'))), weights)
    if not any(found[name].shape == weights[name].shape for name in found):
        raise KeysegError(
            f'{path} has no weights in common with this model; --public takes those it was trained from, whole or the '
            'backbone alone'
        )
    return found


def show_nearness(entries: Sequence[MapEntry], weights: dict[str, Any], public: dict[str, Any], path: Path) -> None:
    """Compare the weights that are to be locked with the public ones, and warn of those that are close.

    They are compared by their singular values, as an attacker would compare the locked ones. But large layers of random
    weights have much the same ones without having anything to do with each other, and here the plain weights tell.
    """
    from keyseg_mm.audit.model.spectra import CLOSE, layer_distances

    found = layer_distances(entries, weights, public)
    found = {name: max(value, _unrelated(weights[name], public[name])) for name, value in found.items()}
    nearest = sorted(found, key=lambda name: found[name])
    names = ', '.join(f'{name.removesuffix(".weight")} ({found[name]:.3f})' for name in nearest[:_NEAREST])
    close = [name for name in nearest if found[name] < CLOSE]
    if not found:
        print(f'\nnone of the layers to be locked is in {path}: nothing was compared')
    elif not close:
        print(f'\nnone of {len(found)} layers is close to the public weights {path}; the nearest, by distance: {names}')
    else:
        print(
            f'\nWARNING: {len(close)} of {len(found)} layers are close to public weights ({path}): whoever has those '
            f'can realign them. The nearest, by distance (0 is the same, below {CLOSE} is close): {names}. Train with '
            'the key from random weights instead, or fine-tune longer before you lock'
        )


def _unrelated(ours: Any, theirs: Any) -> float:
    """The relative difference of two weights if it is that of unrelated ones, else 0."""
    apart = float((ours.double() - theirs.double()).norm() / theirs.double().norm().clamp_min(1e-12))
    return apart if apart > _RELATED else 0.0


def hint_at_public(cfg: Any) -> None:
    """Name the public weights that a config starts from, if there are any."""
    from keyseg_mm.mm.config import pretrained_files

    names = pretrained_files(cfg)
    if names:
        print(
            f'\nhint: this config starts from {", ".join(names)}; if others can have that, give the file as --public: '
            'whoever has it can realign layers that are still close to it'
        )
