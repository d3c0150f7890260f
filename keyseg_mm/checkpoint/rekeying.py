"""Give protected checkpoint files to others: to other keys, or as copies of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from keyseg_mm.atomic import refuse_existing
from keyseg_mm.checkpoint.files import read_checkpoint
from keyseg_mm.checkpoint.marks import Mark, strength_of
from keyseg_mm.checkpoint.opened import Opened, open_checkpoint, opened_of
from keyseg_mm.checkpoint.patching import ForeignFileError, patch, patch_anew
from keyseg_mm.errors import LockError
from keyseg_mm.keys.identity import Key, Recipient
from keyseg_mm.locking import rekey_in_place, unwrap
from keyseg_mm.seal.memory import Put, ScatteredError, exchange
from keyseg_mm.seal.sections import WEIGHTS, Sealing, rewrap, sealed_stamp
from keyseg_mm.stamp import Stamp, is_stamp, stamps_of

Salt = Callable[[Mapping[str, Any]], bytes]
Changed = Callable[[Opened], tuple[dict[str, Stamp], Sealing]]


class _ToCome(NamedTuple):
    """What a copy gets that its original has not: recipients, what makes its salt, and a mark."""

    recipients: tuple[Key | Recipient, ...]
    salt: Salt | None
    mark: Mark | None


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

    to_come = _ToCome(tuple(recipients), salt, mark)
    changed = partial(_change, keys=(key, new_key), to_come=to_come, model=model, check=check)
    if Path(path).suffix == Path(out).suffix:
        with suppress(ForeignFileError, ScatteredError):
            return _in_its_place(path, key, out, changed, check, overwrite), ()
    opened = open_checkpoint(path, key, check)
    stamps, how = changed(opened)
    opened.write(out, how, overwrite)
    return stamps, opened.dropped


def _change(
    opened: Opened, keys: tuple[Key, Key], to_come: _ToCome, model: nn.Module | None, check: bool
) -> tuple[dict[str, Stamp], Sealing]:
    """Give what was opened other maps and a mark; its stamps then, and how it is to be sealed."""
    opened.drop_others()
    tensors, strength, mark = opened.state_dict, strength_of(opened, to_come.mark), to_come.mark
    if stamps_of(tensors) or opened.stamp is None:
        salt, put = to_come.salt(unwrap(tensors)) if to_come.salt else None, mark.put if mark else None
        rekey_in_place(tensors, *keys, model, salt, None, check, own=True, change=put)
    elif mark is not None:
        mark.put(tensors)
    return stamps_of(tensors), Sealing(keys[1], (keys[1], *to_come.recipients), opened.mode, strength)


def _in_its_place(
    path: str | Path, key: Key, out: str | Path, changed: Changed, check: bool, overwrite: bool
) -> dict[str, Stamp]:
    """Make a file like another one, with the weights that a change makes of its weights.

    Raises:
        ForeignFileError: it is another file that would have to be written.
        ScatteredError: its tensors do not lie in it one by one.
    """
    stamps: dict[str, Stamp] = {}

    def make(found: dict[str, Any], put: Put) -> dict[bytes, bytes]:
        opened = opened_of(found, key, check)
        old = opened.stamp
        if old is None or opened.others or opened.dropped:
            raise ForeignFileError('what is written of this file is not all that is in it')
        made, how = changed(opened)
        stamps.update(made)
        weights = opened.sealed(how)[WEIGHTS]
        new = sealed_stamp(weights)
        exchange(found[WEIGHTS], weights, put)
        return _patches([(old, new)] if new is not None else [], found)

    patch_anew(path, out, make, overwrite)
    return stamps
