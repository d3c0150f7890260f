"""What is written of a live model: an opened one gets its maps and its stamp back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from keyseg_mm.errors import LockError, PlanMismatchError
from keyseg_mm.keys.key import FeatureSecret
from keyseg_mm.locking.engine import lock_again
from keyseg_mm.runtime.attach import protection_of
from keyseg_mm.runtime.protection import Protection, State
from keyseg_mm.seal.sections import WEIGHTS

RUNTIME = 'keyseg_runtime'  # in a file's meta: how the model ran that it was written of
_COPIES = ('', 'module.')  # where a model's weights are in a section: its own, or those that EMA's wrapper averages

_NOT_THERE = (
    'the stamp of this model says that its maps are carried by {}, which it does not have: it was loaded from a model '
    'with other parts, and what is written would be plain there. Train it with '
    "protection.runtime='keyed', which carries what fits"
)


def lock_opened(model: nn.Module, checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint whose weights carry the maps of the model, where that runs opened in memory.

    Optimizer states stay in the coordinates that the model runs in; see :func:`check_runtime`.

    Args:
        model: that it is of.
        checkpoint: with ``state_dict``; stays as it is.

    Raises:
        LockError: weights that are to carry a map are not there. Nothing is changed.
    """
    opened = {name: p for name, module in model.named_modules() if (p := _opened(module)) is not None}
    found: dict[str, Any] = dict(checkpoint)
    for section, value in checkpoint.items() if opened else ():
        if section == 'meta' or not isinstance(value, Mapping):
            continue
        for prefix in _COPIES:
            places = {prefix + (f'{name}.' if name else ''): p for name, p in opened.items()}
            names = {place + weight for place, p in places.items() for weight in _weights(p)}
            missing = sorted(name for name in names if name not in value)
            if len(missing) == len(names) and (section, prefix) != (WEIGHTS, ''):
                continue  # it has no such weights
            if missing:
                raise LockError(_NOT_THERE.format(', '.join(missing)))
            found[section] = _locked(dict(found[section]), places)
    return found


def runtime_of(model: nn.Module) -> str:
    """How a model runs: ``'plain'`` where it, or a part of it, is opened in memory and has maps, else ``'keyed'``."""
    return 'plain' if any(_opened(module) is not None for module in model.modules()) else 'keyed'


def check_runtime(model: nn.Module, checkpoint: Mapping[str, Any]) -> None:
    """Refuse to go on with an optimizer whose states are in other coordinates than the model runs in.

    Raises:
        PlanMismatchError: one ran opened in memory, and the other did not.
    """
    was = (checkpoint.get('meta') or {}).get(RUNTIME)
    if was is not None and 'optimizer' in checkpoint and was != runtime_of(model):
        raise PlanMismatchError(
            f"this training ran with protection.runtime='{was}', and its optimizer knows its weights as they were in "
            'memory then: resume it with the same runtime, or begin a new training from its weights (load_from)'
        )


def _opened(module: nn.Module) -> Protection | None:
    found = protection_of(module)
    return found if found is not None and found.state is State.PLAIN and found.stamp.maps else None


def _weights(protection: Protection) -> set[str]:
    return {name for entry in protection.stamp.maps for name in entry.weights}


def _locked(section: dict[str, Any], places: Mapping[str, Protection]) -> dict[str, Any]:
    for place, protection in places.items():
        if isinstance(protection.features, FeatureSecret) and protection.key is not None:
            lock_again(section, place, protection.key, protection.features, protection.stamp)
    return section
