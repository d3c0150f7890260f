"""What a case grants an attacker, taken where an attack says that it needs it."""

from __future__ import annotations

from typing import TypeVar

from keyseg_mm.errors import KeysegError

_Value = TypeVar('_Value')


def granted(value: _Value | None) -> _Value:
    """A field of a case that is not None.

    Raises:
        KeysegError: the case does not grant it; whoever asked before, by ``possible``, would know.
    """
    if value is None:
        raise KeysegError('this attack needs something that the case does not grant; see what it needs')
    return value
