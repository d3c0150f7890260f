"""Seal, lock, rekey and unlock checkpoint files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from keyseg_mm.atomic import refuse_existing
from keyseg_mm.checkpoint.files import read_checkpoint
from keyseg_mm.checkpoint.marks import Mark, put_mark, strength_of
from keyseg_mm.checkpoint.opened import Opened, open_checkpoint
from keyseg_mm.checkpoint.patching import ForeignFileError, patch, patch_anew
from keyseg_mm.envelope import SEALED
from keyseg_mm.errors import LockError
from keyseg_mm.keys.identity import Key, Recipient
from keyseg_mm.locking import Plan, lock_in_place, proved, rekey_in_place, unlock_in_place, unwrap
from keyseg_mm.seal.memory import ScatteredError
from keyseg_mm.seal.sections import WEIGHTS, Sealing, rewrap, sealed_stamp
from keyseg_mm.seal.tensors import Put
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


def rekey_file(
    path: str | Path,
    key: Key,
    recipients: Sequence[Key | Recipient],
    out: str | Path,
    *,
    reseal: bool = False,
    overwrite: bool = False,
) -> tuple[str, ...]:
    """Give a protected checkpoint to others: its envelope is made anew. Weights and maps stay as they are.

    Args:
        path: sealed or signed.
        key: of one of its recipients.
        recipients: who can open it from now on; the first one names it.
        out: file to make.
        reseal: encrypt it anew too, under a fresh content key; so it is where ``out`` is of another format.
        overwrite: replace ``out``.

    Returns:
        What was dropped; nothing where the envelope alone was changed.
    """
    refuse_existing(out, overwrite)
    content = read_checkpoint(path)
    _refuse_rekey(path, sealed_stamp(content[WEIGHTS]), recipients)
    if Path(path).suffix == Path(out).suffix:  # what is patched stays what it is
        with suppress(ForeignFileError, ScatteredError):
            if not reseal:
                patch(path, out, _patches(rewrap(key, content, recipients), content), overwrite)
                return ()

            def make(found: dict[str, Any], put: Put) -> dict[bytes, bytes]:
                return _patches(rewrap(key, found, recipients, put), found)

            patch_anew(path, out, make, overwrite)
            return ()
    opened = open_checkpoint(path, key)
    opened.write(out, Sealing(key, tuple(recipients), opened.mode, strength_of(opened)), overwrite)
    return opened.dropped


def _refuse_rekey(path: str | Path, stamp: Stamp | None, recipients: Sequence[Key | Recipient]) -> None:
    if stamp is None:
        raise LockError(f'{path} has no seal, and so no recipients; to seal it: keyseg lock')
    if not recipients:
        raise LockError('name at least one recipient: else nobody could open it any more')
    if stamp.images and recipients[0].recipient.id != stamp.key_id:
        raise LockError(
            f'this model was trained on encrypted images, and learnt to read those of key {stamp.key_id} alone, which '
            'others cannot make: name that key first, and then others who may open the file'
        )


def _patches(stamps: Sequence[tuple[Stamp, Stamp]], content: Mapping[str, Any]) -> dict[bytes, bytes]:
    """What to replace in a file by what.

    Raises:
        ForeignFileError: its stamps are too short, or parts have stamps of their own.
    """
    sections = {where: section for where, section in content.items() if isinstance(section, Mapping)}
    written = {(where, n): value for where, s in sections.items() for n, value in s.items() if is_stamp(str(n))}
    changes: dict[bytes, bytes] = {}
    for old, new in stamps:
        where = old.seal.section if old.seal is not None else WEIGHTS
        before, after = bytes(written.pop((where, old.name)).tolist()), new.to_bytes()
        changes[before] = after.ljust(len(before), b' ')
        changes[old.name.encode()] = new.name.encode()
    if written or any(len(before) != len(after) for before, after in changes.items()):
        raise ForeignFileError('the stamps of this file have no room for others')
    return changes


def change_maps_file(
    path: str | Path,
    key: Key,
    new_key: Key,
    out: str | Path,
    *,
    recipients: Sequence[Key | Recipient] = (),
    model: nn.Module | None = None,
    salt: Salt | None = None,
    check: bool = True,
    overwrite: bool = False,
    mark: Mark | None = None,
) -> tuple[dict[str, Stamp], tuple[str, ...]]:
    """A protected checkpoint with maps of another key in its weights, as a licensee's copy has; always sealed anew.

    The plain weights never come into being where there are maps, and no mark; see :func:`keyseg_mm.locking.rekey`.

    Args:
        path, key: protected with that key.
        new_key, out: the key to come, and the file to make.
        recipients: who else can open it.
        salt: makes the salt, as :func:`keyseg_mm.bind.licensee_salt` does; by default a fresh one.
        model, check, overwrite: as of :func:`unlock_file`.
        mark: put into the weights.

    Returns:
        The new stamps by the prefix of their module, and what was dropped.
    """
    refuse_existing(out, overwrite)
    opened = open_checkpoint(path, key, check)
    opened.drop_others()
    tensors, strength = opened.state_dict, strength_of(opened, mark)
    if stamps_of(tensors) or opened.stamp is None:
        own_salt, put = salt(unwrap(tensors)) if salt else None, mark.put if mark else None
        rekey_in_place(tensors, key, new_key, model, own_salt, None, check, own=True, change=put)
    elif mark is not None:
        mark.put(tensors)
    stamps = stamps_of(tensors)
    opened.write(out, Sealing(new_key, (new_key, *recipients), opened.mode, strength), overwrite)
    return stamps, opened.dropped


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
