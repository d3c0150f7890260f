"""A file with other stamps, in the time of copying it: what changes is as long as what it replaces, and patched.

A ``.pth`` is a zip archive of stored, not compressed, members (``data.pkl`` with the names, a member for the bytes of
each tensor); a ``.safetensors`` a header with the names and the bytes behind it. Stamps are padded as they are written,
so that others fit in their place.
"""

from __future__ import annotations

import json
import mmap
import os
import shutil
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from keyseg_mm.atomic import write_new
from keyseg_mm.errors import KeysegError

_CENTRAL = struct.Struct('<4s4B4HL2L5H2L')  # PKZIP Application Note 4.3.12
_CENTRAL_CRC_AT = 16
_LOCAL, _LOCAL_CRC_AT, _DESCRIPTOR_FLAG, _DESCRIPTOR_MAGIC = struct.Struct('<4s5H3L2H'), 14, 0x08, b'PK\x07\x08'
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
    if any(len(old) != len(new) for old, new in changes.items()):
        raise ValueError('patches have the length of what they replace')

    def write(file: IO[bytes]) -> None:
        with open(source, 'rb') as original:
            if not _clone(original, file):
                shutil.copyfileobj(original, file, _COPIED)
        file.flush()
        with mmap.mmap(file.fileno(), 0) as whole:
            members = _members(file, whole)
            sizes = set(map(len, changes))
            places = [(at, end) for at, end, named in members if named or end - at in sizes]
            changed = [place for place in places if _replace(whole, place, changes)]
            if any(all(whole.find(new, *place) < 0 for place in places) for new in changes.values()):
                raise ForeignFileError(_FOREIGN)
            if zipfile.is_zipfile(file):
                _mend_checksums(file, whole, {at for at, _ in changed})

    write_new(out, write, overwrite=overwrite)


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


def _members(file: IO[bytes], whole: mmap.mmap) -> list[tuple[int, int, bool]]:
    """Where each part of a file is, and whether it is the part with the names."""
    if not zipfile.is_zipfile(file):  # a .safetensors file: the header's length, the header, the bytes of each tensor
        start = 8 + int.from_bytes(whole[:8], 'little')
        try:
            rows = json.loads(whole[8:start])
        except ValueError:
            raise ForeignFileError(_FOREIGN) from None
        offsets = [row['data_offsets'] for name, row in rows.items() if name != '__metadata__']
        return [(8, start, True), *((start + a, start + b, False) for a, b in offsets)]
    with zipfile.ZipFile(file) as archive:
        found = [(_start(whole, info), info) for info in archive.infolist()]
    return [(at, at + info.compress_size, info.filename.endswith('data.pkl')) for at, info in found]


def _start(whole: mmap.mmap, info: zipfile.ZipInfo) -> int:
    """Where the bytes of a member begin."""
    fields = _LOCAL.unpack_from(whole, info.header_offset)
    return info.header_offset + _LOCAL.size + int(fields[-2]) + int(fields[-1])


def _replace(whole: mmap.mmap, place: tuple[int, int], changes: Mapping[bytes, bytes]) -> bool:
    """Replace in one part of the file; whether anything was."""
    before = part = whole[place[0] : place[1]]
    for old, new in changes.items():
        part = part.replace(old, new)
    if part != before:
        whole[place[0] : place[1]] = part
    return part != before


def _mend_checksums(file: IO[bytes], whole: mmap.mmap, starts: set[int]) -> None:
    """Give the zip members that start there their new CRC-32, in each of the places where the format keeps it."""
    with zipfile.ZipFile(file) as archive:
        entry, members = archive.start_dir, archive.infolist()
    for info in members:  # in the order of the central directory
        said = _CENTRAL.unpack_from(whole, entry)
        here, entry = entry, entry + _CENTRAL.size + sum(said[-7:-4])
        start = _start(whole, info)
        end = start + info.compress_size
        if start not in starts:
            continue
        crc = _CRC.pack(zlib.crc32(memoryview(whole)[start:end]))
        spots = [here + _CENTRAL_CRC_AT]
        if info.flag_bits & _DESCRIPTOR_FLAG:
            spots.append(end + (4 if whole[end : end + 4] == _DESCRIPTOR_MAGIC else 0))
        else:
            spots.append(info.header_offset + _LOCAL_CRC_AT)
        for spot in spots:
            whole[spot : spot + _CRC.size] = crc
