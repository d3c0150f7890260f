"""Keeping secrets out of an attacker's hands: looking for them in whatever is about to be handed over."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from types import FunctionType, MethodType, ModuleType
from typing import Any

from torch import nn

from keyseg_mm.errors import SecretExposedError
from keyseg_mm.keys.secret import Secret


def refuse_secrets(value: Any, where: str) -> None:
    """Refuse a value in which a secret can be reached, through containers, modules, closures and bound methods.

    Args:
        value: anything.
        where: its name, for the message.

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
                'the scenario grants, as plain tensors'
            )
        stack.extend(_reachable(item))


def _reachable(item: Any) -> Iterable[Any]:
    if isinstance(item, Mapping):
        return item.values()
    if isinstance(item, (tuple, list, set, frozenset)):
        return item
    if isinstance(item, MethodType):
        return (item.__self__,)
    # fields of dataclasses; of modules the submodules, hooks, and what an encryptor keeps beside them
    held = () if isinstance(item, (type, ModuleType)) else getattr(item, '__dict__', {}).values()
    if isinstance(item, nn.Module) or not callable(item):
        return held
    if isinstance(item, functools.partial):
        return (item.func, *item.args, *item.keywords.values())
    return (*held, *(_held_by(item) if isinstance(item, FunctionType) else ()))


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
