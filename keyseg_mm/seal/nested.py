"""Tensors in nested dicts, lists and tuples, each by a name of its own."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from keyseg_mm.errors import LockError


def tensors_of(value: Any, path: tuple[Any, ...] = ()) -> dict[str, Tensor]:
    """All tensors in nested dicts, lists and tuples, by name; a deeper one's name is its path as JSON."""
    if isinstance(value, Tensor):
        return {_name_at(path): value}
    found: dict[str, Tensor] = {}
    for step, item in _items(value):
        found.update(tensors_of(item, (*path, step)))
    return found


def with_tensors(value: Any, tensors: Mapping[str, Any], path: tuple[Any, ...] = ()) -> Any:
    """The same nested value with other tensors, by the names that :func:`tensors_of` gives them."""
    if isinstance(value, Tensor):
        return tensors[_name_at(path)]
    items = [(step, with_tensors(item, tensors, (*path, step))) for step, item in _items(value)]
    if isinstance(value, Mapping):
        twin: Any = copy.copy(value)
        twin.update(items)
        return twin
    if isinstance(value, (list, tuple)):
        found = [item for _, item in items]
        return type(value)(*found) if hasattr(value, '_fields') else type(value)(found)
    return value


def _name_at(path: tuple[Any, ...]) -> str:
    """The name of what is found on a path: its key, where that looks like no path itself, or the path as JSON."""
    if len(path) == 1 and isinstance(path[0], str) and not path[0].startswith('['):
        return path[0]
    try:
        return json.dumps(path)
    except TypeError:
        raise LockError(f'a tensor under the key {path!r:.80} cannot be sealed: keys are texts and numbers') from None


def _items(value: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(value, Mapping):
        return list(value.items())
    return enumerate(value) if isinstance(value, (list, tuple)) else ()
