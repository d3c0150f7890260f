"""Does a state_dict fit a model? Asked before anything is locked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from keyseg_mm.errors import LockError
from keyseg_mm.stamp import stamps_of

_FEW = 5


def fit(state_dict: Mapping[str, Any], model: nn.Module, drop: bool = False) -> dict[str, Any]:
    """A plain state_dict, checked against its model.

    Args:
        state_dict: with or without the prefix ``module.`` that data-parallel wrappers leave.
        model: the plain model.
        drop: leave out entries that the model does not know (old EMA copies, say, which would stay plain).

    Raises:
        StampError: it carries a damaged stamp.
        LockError: protected already, entries missing or of another shape, or unknown ones without ``drop``.
    """
    for stamp in stamps_of(state_dict).values():
        what = 'takes encrypted images' if stamp.embeddings or stamp.images else 'is protected'
        raise LockError(
            f'this checkpoint {what} already, with key {stamp.key_id}; to give it another key: keyseg rekey'
        )
    found = unwrap(state_dict)
    expected = model.state_dict()
    missing = [name for name in expected if name not in found and not name.endswith('num_batches_tracked')]
    unknown = [name for name in found if name not in expected]
    shapes = [name for name in found if name in expected and _shape(found[name]) != _shape(expected[name])]
    problems = [
        ('missing', missing),
        ('of another shape, or no tensors', shapes),
        *([] if drop else [('not in the model', unknown)]),
    ]
    words = '; '.join(f'{len(names)} {what} ({_few(names)})' for what, names in problems if names)
    if words:
        raise LockError(f'this checkpoint does not fit the model of this config: {words}')
    return {name: value for name, value in found.items() if name in expected}


def unwrap(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """A state_dict without the prefix ``module.`` that data-parallel wrappers leave."""
    prefix = 'module.'
    wrapped = bool(state_dict) and all(name.startswith(prefix) for name in state_dict)
    return {name[len(prefix) * wrapped :]: value for name, value in state_dict.items()}


def _shape(value: Any) -> tuple[int, ...] | None:
    """Of a tensor; None of anything else."""
    return tuple(value.shape) if hasattr(value, 'shape') else None


def _few(names: list[str]) -> str:
    return ', '.join(names[:_FEW]) + (' ...' if len(names) > _FEW else '')
