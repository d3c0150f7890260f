"""Keeping secrets out of an attacker's hands: looking for them in whatever is about to be handed over."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from types import FunctionType, MethodType
from typing import Any

from torch import nn

from keyseg_mm.errors import SecretExposedError
from keyseg_mm.keys.secret import Secret


def refuse_secrets(value: Any, where: str, inside_calls: bool = True) -> None:
    """Refuse a value in which a secret can be reached, through containers, modules, closures and bound methods.

    Args:
        value: anything.
        where: its name, for the message.
        inside_calls: look into what functions close over, too.

    Raises:
        SecretExposedError: something secret is there. It is not quoted.
    """
    seen: set[int] = set()
    stack = [value]
    while stack:
        item = stack.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, Secret):
            raise SecretExposedError(
                f"{where}: a secret ({type(item).__name__}) may not be among an attacker's belongings; hand over what "
                'the situation grants, as plain tensors'
            )
        stack.extend(_reachable(item, inside_calls))


def _reachable(item: Any, inside_calls: bool) -> Iterator[Any]:
    if isinstance(item, Mapping):
        yield from item.values()
    elif isinstance(item, (tuple, list, set, frozenset)):
        yield from item
    elif isinstance(item, nn.Module):
        yield from vars(item).values()  # submodules, hooks, and what an encryptor keeps beside them
    elif isinstance(item, MethodType):
        yield item.__self__
    elif isinstance(item, functools.partial):
        if inside_calls:
            yield from (item.func, *item.args, *item.keywords.values())
    elif isinstance(item, FunctionType):
        if inside_calls:
            yield from _held_by(item)
    elif dataclasses.is_dataclass(item) and not isinstance(item, type):
        yield from (getattr(item, f.name) for f in dataclasses.fields(item))
    elif inside_calls and callable(item) and not isinstance(item, type):
        yield from vars(item).values() if hasattr(item, '__dict__') else ()


def _held_by(function: FunctionType) -> Iterator[Any]:
    """What a function closes over, its defaults, and the objects among the global names that it uses."""
    yield from (cell.cell_contents for cell in function.__closure__ or () if _filled(cell))
    yield from (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
    used = (function.__globals__.get(name) for name in function.__code__.co_names)
    yield from (item for item in used if isinstance(item, (Secret, nn.Module, dict, list, tuple)))


def _filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:  # an empty cell
        return False
