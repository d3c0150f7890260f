"""Give protected checkpoint files to others: to other keys, or as copies of their own."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import nn

from keyseg_mm.atomic import refuse_existing
from keyseg_mm.checkpoint.files import read_checkpoint
from keyseg_mm.checkpoint.marks import Mark, strength_of
from keyseg_mm.checkpoint.onepass import Salt, ToCome, copy_in_one_pass
from keyseg_mm.checkpoint.opened import Opened, open_checkpoint
from keyseg_mm.checkpoint.patching import ForeignFileError, patch, patch_anew, patches_of
from keyseg_mm.errors import LockError
from keyseg_mm.keys.identity import Key, Recipient
from keyseg_mm.locking import rekey_in_place, unwrap
from keyseg_mm.seal.memory import Put, ScatteredError
from keyseg_mm.seal.sections import WEIGHTS, Sealing, rewrap, sealed_stamp
from keyseg_mm.stamp import Stamp, stamps_of


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
                patch(path, out, patches_of(rewrap(key, content, recipients), content), overwrite)
                return ()

            def make(found: dict[str, Any], put: Put) -> dict[bytes, bytes]:
                return patches_of(rewrap(key, found, recipients, put), found)

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
    to_come = ToCome(new_key, tuple(recipients), salt, mark)
    if Path(path).suffix == Path(out).suffix:
        with suppress(ForeignFileError, ScatteredError):
            return copy_in_one_pass(path, key, out, to_come, overwrite), ()
    opened = open_checkpoint(path, key, check)
    opened.drop_others()
    how = Sealing(new_key, (new_key, *recipients), opened.mode, strength_of(opened, mark))
    stamps = _change(opened, (key, new_key), to_come, model, check)
    opened.write(out, how, overwrite)
    return stamps, opened.dropped


def _change(
    opened: Opened, keys: tuple[Key, Key], to_come: ToCome, model: nn.Module | None, check: bool
) -> dict[str, Stamp]:
    """Give weights their other maps, and the mark; their stamps then."""
    tensors, mark = opened.state_dict, to_come.mark
    if stamps_of(tensors) or opened.stamp is None:
        salt, put = to_come.salt(unwrap(tensors)) if to_come.salt else None, mark.put if mark else None
        rekey_in_place(tensors, *keys, model, salt, None, check, own=True, change=put)
    elif mark is not None:
        mark.put(tensors)
    return stamps_of(tensors)
