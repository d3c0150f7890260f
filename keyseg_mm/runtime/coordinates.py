"""Which secret maps a live model's weights carry, as these are filled, loaded and left.

The law: a keyed model's weights carry its maps, whatever they came from. Training behind orthogonal maps is then the
plain training in other coordinates, step by step.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor, nn

from keyseg_mm.bind import Bound
from keyseg_mm.locking.planning import with_weights
from keyseg_mm.locking.scheme import carry_maps, join_maps, turn_weights
from keyseg_mm.maps.order import WeightMap
from keyseg_mm.stamp import Stamp


def maps_of(bound: Bound | None, names: Collection[str] | None = None) -> dict[str, WeightMap]:
    """The map that each weight carries, by name; of these names only, which spares deriving the other points' maps."""
    if bound is None:
        return {}
    if names is None:
        return bound.weight_maps()
    few = {entry.point: tuple(name for name in entry.weights if name in names) for entry in bound.stamp.maps}
    return Bound(bound.key, with_weights(bound.stamp, few)).weight_maps()


def with_readers(stamp: Stamp, known: Stamp) -> Stamp:
    """A stamp whose weights are those that another one knows for the same points, and else its own.

    A loaded stamp tells which weights of its own model read a map; in a model with another head these are others.
    """
    return with_weights(stamp, {entry.point: entry.weights for entry in known.maps if entry.weights})


def carry_loaded(
    model: nn.Module, state_dict: dict[str, Any], prefix: str, old: Bound | None, new: Bound, there: Bound | None
) -> None:
    """Let all weights of a model carry the maps of ``new``, as a state_dict is about to be loaded into it.

    Args:
        model: its weights carry ``there``. Those that the load leaves, since they are missing or of another shape,
            are changed.
        state_dict: its weights carry ``old``, of the same secret as ``new``; values are replaced where other points'
            maps are asked for.
        prefix: of the model's names in it.
        old, new, there: None for plain weights.
    """
    before, after, now = (_readings(bound) for bound in (old, new, there))
    own = dict(model.named_parameters(remove_duplicate=False))
    names = [name for name in {**before, **after, **now} if name in own]
    loaded = {name for name in names if _fills(state_dict.get(prefix + name), own[name])}
    other = {name for name in loaded if before.get(name) != after.get(name)}
    carry_maps(state_dict, join_maps(maps_of(old, other), maps_of(new, other)), prefix)
    left = set(names) - loaded
    turn_weights(model, maps_of(there, left), maps_of(new, left))


def _readings(bound: Bound | None) -> Mapping[str, list[str]]:
    """By the name of each weight, the points whose maps it reads."""
    found: dict[str, list[str]] = {}
    for entry in bound.stamp.maps if bound else ():
        for name in entry.weights:
            found.setdefault(name, []).append(entry.point)
    return found


def _fills(value: Any, parameter: nn.Parameter) -> bool:
    return isinstance(value, Tensor) and value.shape == parameter.shape
