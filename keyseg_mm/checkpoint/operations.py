"""Lock, rekey and unlock of checkpoint files. What is written is ``meta`` and ``state_dict``, and nothing else.

A training checkpoint holds plain weights in more places than one: the EMA copy, the optimizer's momentum. So what may
be written is listed, and the rest is dropped, and named.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from keyseg_mm.atomic import refuse_existing
from keyseg_mm.checkpoint.files import read_checkpoint, write_checkpoint
from keyseg_mm.keys.key import SecretKey
from keyseg_mm.locking import Plan, fit, lock_in_place, rekey_in_place, unlock_in_place
from keyseg_mm.stamp import Stamp, stamps_of

_PLAIN_VALUES = (str, int, float, bool, type(None))


@dataclass
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

    def fit(self, model: nn.Module) -> None:
        """Keep the weights that a model knows; see :func:`keyseg_mm.locking.fitting.fit`.

        Raises:
            LockError: they do not fit it.
        """
        weights = fit(self.state_dict, model, drop=True)
        unknown = [name for name in self.state_dict if name.removeprefix('module.') not in weights]
        self.dropped = (*self.dropped, *(f'state_dict.{name}' for name in unknown))
        self.state_dict = weights

    def write(self, path: str | Path, overwrite: bool) -> None:
        """Write it; see :func:`keyseg_mm.checkpoint.files.write_checkpoint`."""
        write_checkpoint(path, self.state_dict, self.meta, overwrite)


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
    plan: Plan,
    key: SecretKey,
    out: str | Path,
    salt: bytes | None = None,
    overwrite: bool = False,
) -> tuple[Stamp, tuple[str, ...]]:
    """Lock a plain checkpoint's file; see :func:`keyseg_mm.locking.lock`. It is not proved here, as `keyseg lock` does.

    Args:
        path: plain ``.pth`` or ``.safetensors``.
        model: the plain model.
        plan: of a scheme, as :func:`keyseg_mm.plan_lock` gives it.
        key: the secret key.
        out: file to make.
        salt: 16 public bytes; by default fresh random ones.
        overwrite: replace ``out``.

    Returns:
        The stamp, and what was dropped.

    Raises:
        KeysegError: it could not be read, locked or written; ``out`` is as it was.
    """
    refuse_existing(out, overwrite)
    opened = open_checkpoint(path)
    opened.fit(model)
    return lock_opened(opened, plan, key, out, salt, overwrite), opened.dropped


def lock_opened(
    opened: Opened, plan: Plan, key: SecretKey, out: str | Path, salt: bytes | None = None, overwrite: bool = False
) -> Stamp:
    """:func:`lock_file` of a checkpoint that is open already, and fits its model. Its weights are overwritten."""
    stamp = lock_in_place(opened.state_dict, plan, key, salt, own=True)
    opened.write(out, overwrite)
    return stamp


def rekey_file(
    path: str | Path,
    key: SecretKey,
    new_key: SecretKey,
    out: str | Path,
    model: nn.Module | None = None,
    salt: Callable[[Mapping[str, Any]], bytes] | None = None,
    check: bool = True,
    overwrite: bool = False,
) -> tuple[dict[str, Stamp], tuple[str, ...]]:
    """Rekey a protected checkpoint's file; see :func:`keyseg_mm.locking.rekey`. The plain weights are never written.

    Args:
        salt: makes the salt from the state_dict, as :func:`keyseg_mm.bind.licensee_salt` does; by default a fresh
            random one.

    Returns:
        The new stamps by the prefix of their module, and what was dropped.
    """

    def change(tensors: dict[str, Any]) -> None:
        rekey_in_place(tensors, key, new_key, model, salt(tensors) if salt else None, None, check, own=True)

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
    return _change(path, out, overwrite, lambda t: unlock_in_place(t, key, model, None, check, own=True))[1]


def _change(
    path: str | Path, out: str | Path, overwrite: bool, change: Callable[[dict[str, Any]], None]
) -> tuple[dict[str, Stamp], tuple[str, ...]]:
    refuse_existing(out, overwrite)
    opened = open_checkpoint(path)
    change(opened.state_dict)
    opened.write(out, overwrite)
    return stamps_of(opened.state_dict), opened.dropped


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(name, _PLAIN_VALUES) and _is_plain(item) for name, item in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return isinstance(value, _PLAIN_VALUES)
