"""Digests of inputs and code, so that a result is taken over only where nothing that it depends on has changed."""

from __future__ import annotations

import ast
import dataclasses
import functools
import hashlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

_PACKAGE = 'keyseg_mm.audit.'


@functools.cache
def code_of(module: str) -> str:
    """Digest of a module's source and of all that it imports of the audit, directly or not."""
    seen: dict[str, bytes] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        path = getattr(sys.modules.get(name), '__file__', None)
        if name not in seen and path is not None:
            seen[name] = Path(path).read_bytes()
            waiting += [found for found in _imported(ast.parse(seen[name])) if found.startswith(_PACKAGE)]
    return hashlib.sha256(b''.join(seen[name] for name in sorted(seen))).hexdigest()


def _imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f'{node.module}.{alias.name}' for alias in node.names)


def feed(state: Any, value: Any) -> None:
    """Feed a value into a hash, with its structure, so that no two different ones feed the same bytes."""
    if isinstance(value, Tensor):
        flat = value.detach().cpu().contiguous()
        state.update(f'T{flat.dtype}{tuple(flat.shape)}'.encode())
        state.update(flat.reshape(-1).view(torch.uint8).numpy().tobytes() if flat.numel() else b'')
    elif isinstance(value, np.ndarray):
        state.update(f'A{value.dtype}{value.shape}'.encode() + value.tobytes())
    elif isinstance(value, Mapping):
        feed(state, [part for name in sorted(value) for part in (name, value[name])])
    elif isinstance(value, (tuple, list)):
        state.update(f'L{len(value)}'.encode())
        for item in value:
            feed(state, item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        feed(state, [type(value).__name__, *(getattr(value, item.name) for item in dataclasses.fields(value))])
    elif callable(value):  # functions: the config of the model that they make, and the weights, say what they are
        feed(state, [repr(part) for part in getattr(value, 'args', ())[:1]])
    else:
        text = repr(value)
        state.update(f'R{len(text)}'.encode() + text.encode())
