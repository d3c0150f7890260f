"""Lock, rekey and unlock of checkpoint files. What is written is ``meta`` and ``state_dict``, and nothing else.

A training checkpoint holds plain weights in more places than one: the EMA copy, the optimizer's momentum. So what may
be written is listed, and the rest is dropped, and named.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from keyseg_mm.atomic import refuse_existing
from keyseg_mm.checkpoint.files import read_checkpoint, write_checkpoint
from keyseg_mm.keys.key import SecretKey
from keyseg_mm.locking import fresh_salt, lock_in_place, rekey_in_place, unlock_in_place
from keyseg_mm.lockplan import LockPlan, fit
from keyseg_mm.patches import lock_patches_in_place, rekey_patches_in_place, unlock_patches_in_place
from keyseg_mm.patchplan import PatchPlan, patch_plan_of
from keyseg_mm.stamp import Plan, stamps_of
from keyseg_mm.weightplan import WeightPlan

_Stamp = TypeVar('_Stamp')
_PLAIN_VALUES = (str, int, float, bool, type(None))


@dataclass(frozen=True)
class Opened:
    """A checkpoint as it was read.

    Attributes:
        state_dict: its weights.
        meta: what it says of them: plain values only.
        dropped: what else was in the file, by name.
    """

    state_dict: dict[str, Any]
    meta: dict[str, Any]
    dropped: tuple[str, ...]


def open_checkpoint(path: str | Path) -> Opened:
    """Read a checkpoint, and keep of it what may be written again."""
    content = read_checkpoint(path)
    state_dict, meta = content.pop('state_dict'), content.pop('meta', None)
    meta = dict(meta) if isinstance(meta, Mapping) else {}
    kept = {name: value for name, value in meta.items() if _is_plain(value)}
    dropped = [*content, *(f'meta.{name}' for name in meta if name not in kept)]
    return Opened(state_dict, kept, tuple(map(str, dropped)))


def lock_file(
    path: str | Path,
    model: nn.Module,
    plan: LockPlan | WeightPlan,
    key: SecretKey,
    out: str | Path,
    salt: bytes | None = None,
    overwrite: bool = False,
) -> tuple[Plan, tuple[str, ...]]:
    """Lock a plain checkpoint's file; see :func:`keyseg_mm.locking.lock`. The proof is `keyseg lock`'s, not made here.

    Args:
        path: plain ``.pth`` or ``.safetensors``.
        model: the plain model.
        plan: from :func:`keyseg_mm.lockplan.plan_lock` or :func:`keyseg_mm.weightplan.plan_weights`.
        key: the secret key.
        out: file to make.
        salt: 16 public bytes; by default fresh random ones.
        overwrite: replace ``out``.

    Returns:
        The stamp, and what was dropped.

    Raises:
        KeysegError: it could not be read, locked or written; ``out`` is as it was.
    """
    return _lock(
        path,
        model,
        out,
        overwrite,
        lambda tensors: lock_in_place(tensors, plan.to_plan(key.id, fresh_salt(salt)), key, own=True),
    )


def lock_patches_file(
    path: str | Path,
    model: nn.Module,
    plan: PatchPlan,
    key: SecretKey,
    out: str | Path,
    salt: bytes | None = None,
    overwrite: bool = False,
) -> tuple[PatchPlan, tuple[str, ...]]:
    """Make a plain checkpoint's file one of a model that takes encrypted images; see :mod:`keyseg_mm.patches`.

    Args:
        plan: from :func:`keyseg_mm.mm.embeddings.plan_patches`.

    Other arguments, result and errors as of :func:`lock_file`.
    """
    return _lock(path, model, out, overwrite, lambda tensors: lock_patches_in_place(tensors, plan, key, salt))


def _lock(
    path: str | Path, model: nn.Module, out: str | Path, overwrite: bool, apply: Callable[[dict[str, Any]], _Stamp]
) -> tuple[_Stamp, tuple[str, ...]]:
    refuse_existing(out, overwrite)
    opened = open_checkpoint(path)
    tensors = fit(opened.state_dict, model, drop=True)
    unknown = [name for name in opened.state_dict if name.removeprefix('module.') not in tensors]
    dropped = (*opened.dropped, *(f'state_dict.{name}' for name in unknown))
    opened.state_dict.clear()  # so that each plain weight is let go as it is replaced
    stamp = apply(tensors)
    write_checkpoint(out, tensors, opened.meta, overwrite)
    return stamp, dropped


def rekey_file(
    path: str | Path,
    key: SecretKey,
    new_key: SecretKey,
    out: str | Path,
    model: nn.Module | None = None,
    salt: Callable[[Mapping[str, Any]], bytes] | None = None,
    check: bool = True,
    overwrite: bool = False,
) -> tuple[dict[str, Plan] | dict[str, PatchPlan], tuple[str, ...]]:
    """Rekey a protected checkpoint's file; see :func:`keyseg_mm.locking.rekey`. The plain weights are never written.

    Args:
        salt: makes the salt from the state_dict, as :func:`keyseg_mm.tracing.licensee_salt` does; by default a fresh
            random one.

    Returns:
        The new stamps by the prefix of their module, and what was dropped.
    """

    def change(tensors: dict[str, Any]) -> None:
        fresh = salt(tensors) if salt else None
        if patch_plan_of(tensors) is not None:
            rekey_patches_in_place(tensors, key, new_key, fresh, check)
        else:
            rekey_in_place(tensors, key, new_key, model, fresh, None, check, own=True)

    return _change(path, out, overwrite, change)


def unlock_file(
    path: str | Path,
    key: SecretKey,
    out: str | Path,
    model: nn.Module | None = None,
    check: bool = True,
    overwrite: bool = False,
) -> tuple[str, ...]:
    """Unlock a protected checkpoint's file; see :func:`keyseg_mm.locking.unlock`. Returns what was dropped."""

    def change(tensors: dict[str, Any]) -> None:
        if patch_plan_of(tensors) is not None:
            unlock_patches_in_place(tensors, key, check)
        else:
            unlock_in_place(tensors, key, model, None, check, own=True)

    return _change(path, out, overwrite, change)[1]


def _change(
    path: str | Path, out: str | Path, overwrite: bool, change: Callable[[dict[str, Any]], None]
) -> tuple[dict[str, Plan] | dict[str, PatchPlan], tuple[str, ...]]:
    refuse_existing(out, overwrite)
    opened = open_checkpoint(path)
    change(opened.state_dict)
    write_checkpoint(out, opened.state_dict, opened.meta, overwrite)
    patches = patch_plan_of(opened.state_dict)
    return {'': patches} if patches is not None else stamps_of(opened.state_dict), opened.dropped


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(name, _PLAIN_VALUES) and _is_plain(item) for name, item in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return isinstance(value, _PLAIN_VALUES)
