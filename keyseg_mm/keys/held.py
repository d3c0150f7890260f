"""The keys that live models and pipelines of this process hold, so that files can be opened as they are read."""

from __future__ import annotations

from collections.abc import Iterable
from weakref import WeakValueDictionary

from keyseg_mm.keys.identity import Key

_HELD: WeakValueDictionary[str, Key] = WeakValueDictionary()


def hold(key: Key | None) -> None:
    """Let files be opened with a key for as long as somebody has it."""
    if key is not None:
        _HELD[key.id] = key


def held(ids: Iterable[str]) -> list[Key]:
    """The held keys of these public ids."""
    return [key for key_id in ids if (key := _HELD.get(key_id)) is not None]
