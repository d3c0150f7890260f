"""Seal, lock and unlock checkpoint files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from keyseg_mm.atomic import refuse_existing
from keyseg_mm.checkpoint.marks import Mark, put_mark
from keyseg_mm.checkpoint.opened import Opened, open_checkpoint
from keyseg_mm.envelope import SEALED
from keyseg_mm.errors import LockError
from keyseg_mm.keys.identity import Key, Recipient
from keyseg_mm.locking import Plan, lock_in_place, proved, unlock_in_place
from keyseg_mm.seal.sections import Sealing
from keyseg_mm.stamp import Stamp, fresh_salt, is_stamp, stamps_of

Salt = Callable[[Mapping[str, Any]], bytes]


def seal_file(
    path: str | Path, how: Sealing, out: str | Path, overwrite: bool = False, mark: Mark | None = None
) -> tuple[str, ...]:
    """Seal any checkpoint: plain, or with maps in its weights.

    Args:
        path: ``.pth`` or ``.safetensors`` with a state_dict of any framework.
        how: for whom.
        out: file to make.
        overwrite: replace ``out``.
        mark: put into the weights. The other sections are dropped then: they hold weights without it.

    Returns:
        What was dropped: what is neither tensor nor plain value.

    Raises:
        LockError: it is sealed already.
        KeysegError: it could not be read, sealed or written; ``out`` is as it was.
    """
    refuse_existing(out, overwrite)
    opened = open_checkpoint(path)
    if opened.stamp is not None:
        ids = ' and '.join(opened.stamp.key_ids)
        raise LockError(f'{path} is sealed already, for {ids}; for others: keyseg rekey')
    if mark is not None:
        put_mark(opened, mark)
        how = replace(how, fingerprint=mark.strength)
    opened.write(out, how, overwrite)
    return opened.dropped


def prove_sealed(source: str | Path, sealed: str | Path, key: Key, mark: Mark | None = None) -> None:
    """Make sure that a sealed file opens to what it was made of, bit for bit.

    Args:
        source: what it was made of.
        sealed: the file; it is removed where the proof fails.
        key: of one of its recipients.
        mark: that was put into the weights.

    Raises:
        LockError: it does not.
    """
    before, after = open_checkpoint(source).state_dict, open_checkpoint(sealed, key).state_dict
    if mark is not None:
        mark.put(before)
    same = before.keys() == after.keys() and all(
        is_stamp(name) or _same_bits(value, after[name])  # a stamp's secrets are wrapped anew each time
        for name, value in before.items()
    )
    if not same:
        Path(sealed).unlink()
        raise LockError(f'{sealed} did not open to what {source} holds, and was removed; please report this')


def _same_bits(a: Any, b: Any) -> bool:
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return type(a) is type(b)
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    one, other = (t.detach().contiguous().view(-1).view(torch.uint8) for t in (a, b))
    return torch.equal(one, other)


def lock_file(
    path: str | Path,
    model: nn.Module,
    plan: Plan,
    key: Key,
    out: str | Path,
    salt: bytes | None = None,
    overwrite: bool = False,
    *,
    recipients: Sequence[Key | Recipient] = (),
    mode: str = SEALED,
) -> tuple[Stamp, tuple[str, ...]]:
    """Lock a plain checkpoint's file, after the proof; see :func:`keyseg_mm.locking.lock`.

    Args:
        path: plain ``.pth`` or ``.safetensors``.
        model: the plain model.
        plan: of a scheme, as :func:`keyseg_mm.plan_lock` gives it.
        key: the secret key.
        out: file to make.
        salt: 16 public bytes; by default fresh random ones.
        overwrite: replace ``out``.
        recipients: who else can open it.
        mode: whether it is sealed too, or only signed; see :class:`keyseg_mm.seal.sections.Sealing`.

    Returns:
        The stamp, and what was dropped.

    Raises:
        KeysegError: it could not be read, locked or written; ``out`` is as it was.
    """
    refuse_existing(out, overwrite)
    opened = open_checkpoint(path)
    opened.fit(model)
    salt = fresh_salt(salt)
    plan = proved(plan, model, opened.state_dict, key, salt)
    return lock_opened(opened, plan, Sealing(key, (key, *recipients), mode), out, salt, overwrite), opened.dropped


def lock_opened(
    opened: Opened, plan: Plan, how: Sealing, out: str | Path, salt: bytes | None = None, overwrite: bool = False
) -> Stamp:
    """:func:`lock_file` of a checkpoint that is open already, and fits its model. Its weights are overwritten.

    Its other sections are dropped: they hold the weights as they were.
    """
    opened.drop_others()
    stamp = lock_in_place(opened.state_dict, plan, how.key, salt, own=True)
    opened.write(out, how, overwrite)
    return stamp


def unlock_file(
    path: str | Path,
    key: Key,
    out: str | Path,
    model: nn.Module | None = None,
    *,
    keep_maps: bool = False,
    check: bool = True,
    overwrite: bool = False,
) -> tuple[str, ...]:
    """Unlock a protected checkpoint's file; see :func:`keyseg_mm.locking.unlock`. Its owner alone can read it (0600).

    Args:
        path: protected.
        key: of one of its recipients.
        out: file to make.
        model: the plain model, where the stamp does not tell which weights carry maps.
        keep_maps: take the seal off and leave the maps in the weights.
        check: refuse weights that are only signed, and were altered.
        overwrite: replace ``out``.

    Returns:
        What was dropped.
    """
    refuse_existing(out, overwrite)
    opened = open_checkpoint(path, key, check)
    if keep_maps and opened.stamp is None:
        raise LockError(f'{path} has no seal that could be taken off')
    opened.drop_others()
    if not keep_maps and (stamps_of(opened.state_dict) or opened.stamp is None):
        unlock_in_place(opened.state_dict, key, model, None, check, own=True)
    opened.write(out, None, overwrite)
    return opened.dropped
