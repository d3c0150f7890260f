"""Searching files and folders for secrets, in bounded memory: archives and compressed files by what is in them too.

Links and devices are not followed. Whatever could not be read is told.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from keyseg_mm.errors import KeysegError
from keyseg_mm.runtime.needles import OVERLAP, Pile

_PIECE = 2**20  # bytes searched at a time
# What is packed is opened so deep, and up to so many bytes in all, or times the size of the file; a bomb needs more.
_DEPTH, _ROOM, _RATIO = 4, 2**28, 20
_HEAD = 512  # bytes by which a kind of file is told
_STREAMS: dict[bytes, Callable[[Any], Any]] = {
    b'\x1f\x8b': gzip.open,
    b'BZh': bz2.open,
    b'\xfd7zXZ\0': lzma.open,
}
_CLOSED = {b'\x28\xb5\x2f\xfd': 'zstd', b"7z\xbc\xaf'\x1c": '7z', b'Rar!': 'rar', b'\x04"M\x18': 'lz4'}


@dataclass(frozen=True, order=True)
class Leak:
    """Something secret that was found; names what and where, never the secret itself."""

    where: str
    what: str

    def __str__(self) -> str:
        return f'{self.where}: {self.what}'


@dataclass
class Search:
    """What a search came to.

    Attributes:
        leaks: what was found.
        unread: what could not be read, or not all of it, and why.
        others: links, devices, sockets and pipes, which were not followed.
    """

    leaks: set[Leak] = field(default_factory=set)
    unread: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)


def files_in(folder: str | Path, search: Search) -> list[Path]:
    """All ordinary files in a folder and the folders in it, in order, or the one that is named.

    Args:
        folder: a folder or a file. A link that is named is followed, those in a folder are not.
        search: is told of what is left out.
    """
    root, found = Path(folder), []
    root = root.resolve() if root.is_symlink() else root
    paths = [root]
    if stat.S_ISDIR(_mode(root)):
        walk: Any = os.walk(root, onerror=lambda error: search.unread.append(f'{error.filename}: {error.strerror}'))
        paths = [Path(top, name) for top, folders, names in walk for name in (*folders, *names)]
    for path in paths:
        mode = _mode(path)
        if stat.S_ISREG(mode):
            found.append(path)
        elif not stat.S_ISDIR(mode):
            search.others.append(str(path))
    return sorted(found)


def _mode(path: Path) -> int:
    try:
        return path.lstat().st_mode
    except OSError as error:
        raise KeysegError(f'{path}: {error.strerror}') from None


def search_file(path: Path, pile: Pile, search: Search, tell: Callable[[int], object] = lambda count: None) -> None:
    """Search a file, its name, and what is packed in it.

    Args:
        path: the file.
        pile: what to look for.
        search: is told what comes of it.
        tell: gets the number of bytes that were read, each time.
    """
    search.leaks |= {Leak(f'the name of {path}', what) for what in pile.find(os.fsencode(path))}
    try:
        with open(path, 'rb', opener=_open) as file:
            size = os.fstat(file.fileno()).st_size
            _Reader(pile, search, max(_ROOM, _RATIO * size)).read(str(path), file, tell)
    except OSError as error:
        search.unread.append(f'{path}: {error.strerror or "is damaged"}')


def _open(path: str, flags: int) -> int:
    """Open an ordinary file, also where another one has just taken its place."""
    number = os.open(path, flags | getattr(os, 'O_NOFOLLOW', 0) | getattr(os, 'O_NONBLOCK', 0))
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise OSError(0, 'is no ordinary file any more')
    return number


class _TooLargeError(Exception):
    """There is more in a file than it may hold."""


class _Reader:
    """One file, with what is packed in it, which comes to ``room`` bytes at most."""

    def __init__(self, pile: Pile, search: Search, room: int) -> None:
        self.pile, self.search, self.room = pile, search, room

    def read(self, where: str, file: IO[bytes], tell: Callable[[int], object]) -> None:
        for piece in pieces(file):
            self.search.leaks |= {Leak(where, what) for what in self.pile.find(piece)}
            tell(min(len(piece), _PIECE))
        self.unpack(where, file, 0)

    def unpack(self, where: str, file: IO[bytes], depth: int) -> None:
        """Search what is packed in a file that was searched itself."""
        file.seek(0)
        head = file.read(_HEAD)
        inside = next((open_ for magic, open_ in _STREAMS.items() if head.startswith(magic)), None)
        closed = next((name for magic, name in _CLOSED.items() if head.startswith(magic)), '')
        is_zip, is_tar = head.startswith(b'PK\x03\x04'), head[257:262] == b'ustar'
        if closed or depth == _DEPTH and (inside or is_zip or is_tar):
            self.search.unread.append(f'{where}: {closed or "what is packed in it so deep"} was not unpacked')
            return
        file.seek(0)
        try:
            if inside is not None:
                with inside(file) as stream:
                    self.packed(f'{where}!', stream, depth)
            elif is_zip:
                self.unzip(where, file, depth)
            elif is_tar:
                self.untar(where, file, depth)
        except _TooLargeError:
            if depth:
                raise
            self.search.unread.append(f'{where}: what is packed in it is too large; unpack it, and search that')
        except Exception as error:  # damaged archives stumble over anything
            self.search.unread.append(f'{where}: could not be unpacked ({type(error).__name__})')

    def unzip(self, where: str, file: IO[bytes], depth: int) -> None:
        with zipfile.ZipFile(file) as archive:
            for member in archive.infolist():
                name = f'{where}!{member.filename}'
                if member.flag_bits & 1:
                    self.search.unread.append(f'{name}: is encrypted')
                    continue
                with archive.open(member) as stream:
                    self.packed(name, stream, depth, is_new=member.compress_type != zipfile.ZIP_STORED)

    def untar(self, where: str, file: IO[bytes], depth: int) -> None:
        with tarfile.open(fileobj=file, mode='r:') as archive:
            for member in archive:
                stream = archive.extractfile(member) if member.isreg() else None
                if stream is not None:
                    self.packed(f'{where}!{member.name}', stream, depth, is_new=member.sparse is not None)

    def packed(self, where: str, stream: IO[bytes], depth: int, is_new: bool = True) -> None:
        """Search a member; as it is only where its bytes do not stand in the archive like that."""
        for piece in pieces(stream) if is_new else ():
            self.room -= min(len(piece), _PIECE)
            if self.room < 0:
                raise _TooLargeError
            self.search.leaks |= {Leak(where, what) for what in self.pile.find(piece)}
        self.unpack(where, stream, depth + 1)


def pieces(file: IO[bytes]) -> Iterator[bytes]:
    """A stream in pieces, each of which begins with the end of the one before."""
    end = b''
    while fresh := file.read(_PIECE):
        yield end + fresh
        end = fresh[-OVERLAP:]
