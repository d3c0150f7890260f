"""What the pickle of a checkpoint may name, and what is done in place of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

_OWN_HASH = 2**61 - 1  # whole numbers below are their own hashes, so that no two of them clash


class UnreadableError(Exception):
    """This is no pickle of values, or a damaged one."""


class RefusedError(Exception):
    """This pickle asks for more than values; its text says what for."""


@dataclass(frozen=True)
class Known:
    """What a pickle may name.

    Attributes:
        make: is called in place of it, with what the pickle says.
        kind: of what it makes.
        build: gives something of that kind the state that the pickle holds for it.
    """

    make: Callable[..., Any]
    kind: type | None = None
    build: Callable[[Any, Any], object] | None = None


Names = Mapping[tuple[str, str], Any]


def check_keys(keys: Iterable[Any]) -> None:
    """Make sure that these can be keys: texts, numbers, None.

    Raises:
        UnreadableError: they cannot.
    """
    for key in keys:
        kind = type(key)
        right = kind is str or (kind is int and -_OWN_HASH < key < _OWN_HASH) or kind is bool or key is None
        if not right and not (kind is float and key == key):
            raise UnreadableError
