"""The members of a zip archive as ``torch.save`` writes it: stored one behind the other, and nothing else.

After PKZIP Application Note 4.3. No number in a file decides how much memory or time it takes: what is compressed,
encrypted, said twice or lies in another member is an error.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from keyseg_mm.checkpoint.filebytes import Data
from keyseg_mm.checkpoint.known import UnreadableError
from keyseg_mm.checkpoint.layout import cut

LOCAL, CENTRAL = struct.Struct('<4s5H3L2H'), struct.Struct('<4s4B4HL2L5H2L')
_END, _END_64, _LOCATOR = struct.Struct('<4s4H2LH'), struct.Struct('<4sQ2H2L4Q'), struct.Struct('<4sLQL')
_FULL, _EXTRA_64 = 0xFFFFFFFF, 1
_ENCRYPTED, _MOST_MEMBERS = 0x2041, 200_000


class Member(NamedTuple):
    """A part of an archive.

    Attributes:
        name: as the directory has it.
        line: where its line of the directory begins.
        header: where its own header begins.
        start, stop: where its bytes are.
        flags: of its line.
    """

    name: str
    line: int
    header: int
    start: int
    stop: int
    flags: int


def is_zip(data: Data) -> bool:
    """Whether a file begins as an archive does."""
    return data[:4] == b'PK\3\4'


def members(data: Data) -> dict[str, Member]:
    """The members of an archive by name, in the order of its directory.

    Raises:
        UnreadableError: it is damaged, or no such archive.
    """
    found: dict[str, Member] = {}
    for member in _lines(data):
        if found.setdefault(member.name, member) is not member:
            raise UnreadableError
    furthest = 0
    for member in sorted(found.values(), key=lambda member: member.header):
        if member.header < furthest:
            raise UnreadableError
        furthest = member.stop
    return found


def _lines(data: Data) -> Iterator[Member]:
    at, stop, count = _directory(data)
    for _ in range(count):
        if at + CENTRAL.size > stop:
            raise UnreadableError
        said = CENTRAL.unpack_from(data, at)
        flags, method, packed, size = said[5], said[6], said[10], said[11]
        name_size, extra_size, comment_size, header = said[12], said[13], said[14], said[-1]
        name_at = at + CENTRAL.size
        end = name_at + name_size + extra_size + comment_size
        name = cut(data, name_at, name_at + name_size)
        extra = cut(data, name_at + name_size, name_at + name_size + extra_size)
        size, packed, header = _large(extra, size, packed, header)
        if said[0] != b'PK\1\2' or flags & _ENCRYPTED or method or size != packed or end > stop:
            raise UnreadableError
        if header + LOCAL.size > len(data):
            raise UnreadableError
        local = LOCAL.unpack_from(data, header)
        start = header + LOCAL.size + local[-2] + local[-1]
        name_again = data[start - local[-2] - local[-1] : start - local[-1]]
        if local[0] != b'PK\3\4' or name_again != name or start + size > len(data):
            raise UnreadableError
        yield Member(name.decode('utf-8'), at, header, start, start + size, flags)
        at = end
    if at != stop:
        raise UnreadableError


def _directory(data: Data) -> tuple[int, int, int]:
    """Where the directory begins and ends, and how many lines it has; the archive ends without a comment."""
    end = len(data) - _END.size
    magic, _, _, here, count, size, start, comment = _END.unpack(cut(data, end, end + _END.size))
    if magic != b'PK\5\6' or comment:
        raise UnreadableError
    stop, at = end, end - _LOCATOR.size
    if data[max(at, 0) : end][:4] == b'PK\6\7':  # with numbers of 64 bits, which torch always writes
        _, _, stop, _ = _LOCATOR.unpack(cut(data, at, end))
        magic, *_, here, count, size, start = _END_64.unpack(cut(data, stop, stop + _END_64.size))
        if magic != b'PK\6\6' or stop + _END_64.size != at:
            raise UnreadableError
    if here != count or count > _MOST_MEMBERS or start + size != stop:
        raise UnreadableError
    return start, stop, count


def _large(extra: bytes, *fields: int) -> list[int]:
    """Sizes and offset, of which those that 32 bits cannot hold are in the extra field."""
    found, at = list(fields), 0
    while _FULL in found and at + 4 <= len(extra):
        kind, size = struct.unpack_from('<HH', extra, at)
        if kind == _EXTRA_64:
            numbers = iter(struct.unpack_from(f'<{size // 8}Q', extra, at + 4))
            return [next(numbers) if number == _FULL else number for number in found]
        at += 4 + size
    return found
