"""What is in a case, however deep: no secret, and a digest of all of it, so that a change of any part is noticed."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from keyseg_mm.errors import SecretExposedError
from keyseg_mm.keys.secret import Secret


def refuse_secrets(value: Any, where: str) -> None:
    """Refuse a value in which a secret can be reached, through containers, modules, closures and bound methods.

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
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # an empty cell
            yield cell.cell_contents
    yield from (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
    used = (function.__globals__.get(name) for name in function.__code__.co_names)
    yield from (item for item in used if isinstance(item, (Secret, nn.Module, dict, list, tuple)))


def digest_of(value: Any) -> str:
    """SHA-256 of a value, in hex."""
    state = hashlib.sha256()
    _feed(state, value)
    return state.hexdigest()


def _feed(state: Any, value: Any) -> None:
    """Feed a value into a hash, with its structure, so that no two different ones feed the same bytes."""
    if isinstance(value, Tensor):
        flat = value.detach().cpu().contiguous()
        state.update(f'T{flat.dtype}{tuple(flat.shape)}'.encode())
        state.update(flat.reshape(-1).view(torch.uint8).numpy().tobytes() if flat.numel() else b'')
    elif isinstance(value, np.ndarray):
        state.update(f'A{value.dtype}{value.shape}'.encode() + value.tobytes())
    elif isinstance(value, Mapping):
        _feed(state, ['M', *(part for name in sorted(value) for part in (name, value[name]))])
    elif isinstance(value, (tuple, list)):
        state.update(f'L{len(value)}'.encode())
        for item in value:
            _feed(state, item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        _feed(state, [type(value).__name__, *(getattr(value, item.name) for item in dataclasses.fields(value))])
    elif callable(value):  # functions: the config of the model that they make, and the weights, say what they are
        _feed(state, [repr(part) for part in getattr(value, 'args', ())[:1]])
    else:
        text = repr(value)
        state.update(f'R{len(text)}'.encode() + text.encode())
