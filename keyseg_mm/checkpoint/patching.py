"""A file with other stamps, in the time of copying it: what changes is as long as what it replaces, and patched.

A ``.pth`` is a zip archive of stored, not compressed, members (``data.pkl`` with the names, a member for the bytes of
each tensor); a ``.safetensors`` a header with the names and the bytes behind it. Stamps are padded as they are written,
so that others fit in their place.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import shutil
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any

from keyseg_mm.atomic import write_new
from keyseg_mm.checkpoint.files import read_checkpoint
from keyseg_mm.checkpoint.zips import Member, is_zip, members
from keyseg_mm.errors import KeysegError
from keyseg_mm.seal.memory import Put
from keyseg_mm.seal.sections import WEIGHTS
from keyseg_mm.stamp import Stamp, is_stamp
from keyseg_mm.threads import in_threads

Maker = Callable[[dict[str, Any], Put], Mapping[bytes, bytes]]

_CENTRAL_CRC_AT, _LOCAL_CRC_AT = 16, 14  # PKZIP Application Note 4.3.7 and 4.3.12
_DESCRIPTOR_FLAG, _DESCRIPTOR_MAGIC = 0x08, b'PK\x07\x08'
_CRC = struct.Struct('<L')
_FOREIGN = 'this file does not hold its stamp as it was written; save it again with its own tool'
_COPIED = 16 * 1024 * 1024  # bytes at a time


class ForeignFileError(KeysegError):
    """A file that cannot be patched, since another tool has written it: in another way, or compressed."""


def patch(source: str | Path, out: str | Path, changes: Mapping[bytes, bytes], overwrite: bool = False) -> None:
    """Copy a file and replace bytes in it.

    Args:
        source: ``.pth`` or ``.safetensors``.
        out: file to make.
        changes: what is to be replaced, by as many bytes each; all occurrences outside of the weights' own numbers.
        overwrite: replace ``out``.

    Raises:
        ForeignFileError: something is not there to be replaced.
        KeysegError: ``out`` could not be written. In both cases nothing is left behind.
    """

    def write(file: IO[bytes]) -> None:
        with open(source, 'rb') as original:
            if not _clone(original, file):
                shutil.copyfileobj(original, file, _COPIED)
        file.flush()
        _exchange(file, changes)

    write_new(out, write, overwrite=overwrite)


def patch_anew(source: str | Path, out: str | Path, make: Maker, overwrite: bool = False) -> None:
    """Make a file like another one, with other numbers in its weights and other bytes around them.

    Args:
        source: ``.pth`` or ``.safetensors``.
        out: file to make.
        make: is given what the source holds, mapped, and where to put the new bytes of its tensors, by where in memory
            the old ones lie; returns what else is to be replaced, as :func:`patch` takes it.
        overwrite: replace ``out``.

    Raises:
        ForeignFileError: the source cannot be patched.
        KeysegError: ``out`` could not be written. In both cases nothing is left behind.
    """

    def write(file: IO[bytes]) -> None:
        with open(source, 'rb') as original:
            changes = _put_anew(original, file, make)
        _exchange(file, changes, all_changed=True)

    write_new(out, write, overwrite=overwrite)


def patches_of(stamps: Sequence[tuple[Stamp, Stamp]], content: Mapping[str, Any]) -> dict[bytes, bytes]:
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


def _put_anew(original: IO[bytes], file: IO[bytes], make: Maker) -> Mapping[bytes, bytes]:
    """Write all but the changes to come; when it is done, no page of the original is in memory any more."""
    try:
        whole = mmap.mmap(original.fileno(), 0, access=mmap.ACCESS_COPY)  # closed with the last of its tensors
        content = read_checkpoint(whole)
    except (ValueError, KeysegError):  # who reads it by its path says what is wrong
        raise ForeignFileError(_FOREIGN) from None
    first, written = ctypes.addressof(ctypes.c_char.from_buffer(whole)), list[tuple[int, int]]()

    def put(where: int, data: memoryview) -> None:
        start = where - first
        if not 0 <= start <= len(whole) - len(data):  # it was copied as it was read
            raise ForeignFileError(_FOREIGN)
        written.append((start, start + len(data)))
        _write_at(file, data, start)

    changes = make(content, put)
    _copy_rest(whole, file, written)
    return changes


def _copy_rest(whole: mmap.mmap, file: IO[bytes], written: list[tuple[int, int]]) -> None:
    """Copy what of a file was not written yet."""
    at = 0
    for start, stop in (*sorted(written), (len(whole), len(whole))):
        for begin in range(at, start, _COPIED):
            _write_at(file, memoryview(whole)[begin : min(begin + _COPIED, start)], begin)
        at = stop


def _write_at(file: IO[bytes], data: memoryview, start: int) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(file.fileno(), data[done:], start + done)


def _exchange(file: IO[bytes], changes: Mapping[bytes, bytes], all_changed: bool = False) -> None:
    """Replace bytes in a file, each by as many, and make good what it says of the changed parts."""
    if any(len(old) != len(new) for old, new in changes.items()):
        raise ValueError('patches have the length of what they replace')
    with mmap.mmap(file.fileno(), 0) as whole:
        try:
            zipped = list(members(whole).values()) if is_zip(whole) else []
            parts = [(m.start, m.stop, m.name.endswith('data.pkl')) for m in zipped] or _parts(whole)
        except Exception:
            raise ForeignFileError(_FOREIGN) from None
        sizes = set(map(len, changes))
        places = [(at, end) for at, end, named in parts if named or end - at in sizes]
        changed = {at for at, end in places if _replace(whole, (at, end), changes)}
        if any(all(whole.find(new, *place) < 0 for place in places) for new in changes.values()):
            raise ForeignFileError(_FOREIGN)
        in_threads(partial(_mend_checksum, whole), [m for m in zipped if all_changed or m.start in changed])


def _clone(source: IO[bytes], target: IO[bytes]) -> bool:
    """Let the system copy, which some file systems do without moving a byte."""
    size = os.fstat(source.fileno()).st_size
    try:
        left = size
        while left:
            done = os.copy_file_range(source.fileno(), target.fileno(), left)
            if not done:
                raise OSError
            left -= done
    except (AttributeError, OSError):
        os.truncate(target.fileno(), 0)
        target.seek(0)
        return False
    return True


def _parts(whole: mmap.mmap) -> list[tuple[int, int, bool]]:
    """Where each part of a .safetensors file is, header and tensors, and whether it is the one with the names."""
    start = 8 + int.from_bytes(whole[:8], 'little')
    rows = json.loads(whole[8:start])
    offsets = [row['data_offsets'] for name, row in rows.items() if name != '__metadata__']
    return [(8, start, True), *((start + a, start + b, False) for a, b in offsets)]


def _replace(whole: mmap.mmap, place: tuple[int, int], changes: Mapping[bytes, bytes]) -> bool:
    """Replace in one part of the file; whether anything was."""
    before = part = whole[place[0] : place[1]]
    for old, new in changes.items():
        part = part.replace(old, new)
    if part != before:
        whole[place[0] : place[1]] = part
    return part != before


def _mend_checksum(whole: mmap.mmap, member: Member) -> None:
    """Give a member its new CRC-32, in each of the places where the format keeps it."""
    crc = _CRC.pack(zlib.crc32(memoryview(whole)[member.start : member.stop]))
    spots = [member.line + _CENTRAL_CRC_AT]
    if member.flags & _DESCRIPTOR_FLAG:
        spots.append(member.stop + (4 if whole[member.stop : member.stop + 4] == _DESCRIPTOR_MAGIC else 0))
    else:
        spots.append(member.header + _LOCAL_CRC_AT)
    for spot in spots:
        whole[spot : spot + _CRC.size] = crc
