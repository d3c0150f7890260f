"""Reading ``.pth`` files, by a list of names that holds nothing which could run code; ``torch.load`` has no part in it.

``torch.save`` writes a zip archive of stored members: a pickle, ``data.pkl``, and one for each storage that it refers
to. Before torch 1.6 it wrote some pickles one behind the other, and the storages after them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from keyseg_mm.checkpoint.filebytes import FileBytes
from keyseg_mm.checkpoint.known import Names, UnreadableError
from keyseg_mm.checkpoint.layout import cut
from keyseg_mm.checkpoint.opcodes import unpickle
from keyseg_mm.checkpoint.zips import is_zip, members

_MAGIC, _PROTOCOL, _COUNT_BYTES = 0x1950A86A20F9469CFC6C, 1001, 8


def read_archive(content: FileBytes, names: Names) -> Any:
    """What a ``.pth`` file holds.

    Args:
        content: the file.
        names: what its pickle may name.

    Raises:
        RefusedError: it asks for more than values. Nothing was run.
        UnreadableError: it is damaged, or something else.
    """
    return _Zipped(content).read(names) if is_zip(content.data) else _Old(content).read(names)


class _Zipped:
    """An archive that is being read."""

    def __init__(self, content: FileBytes) -> None:
        self.content, self.members = content, members(content.data)
        pickled = [name for name in self.members if name.endswith('/data.pkl') and name.count('/') == 1]
        if len(pickled) != 1:
            raise UnreadableError
        self.root = pickled[0].removesuffix('data.pkl')
        if f'{self.root}byteorder' in self.members and self.bytes_of('byteorder') != b'little':
            raise UnreadableError
        self.storages: dict[str, Tensor] = {}

    def read(self, names: Names) -> Any:
        return unpickle(self.bytes_of('data.pkl'), names, self.storage)[0]

    def bytes_of(self, name: str) -> bytes:
        member = self.members[self.root + name]
        return cut(self.content.data, member.start, member.stop)

    def storage(self, asked: Any) -> Tensor:
        """All values of a storage, in one dimension."""
        dtype, name, count, *_ = _asked(asked)
        if name not in self.storages:
            member = self.members[f'{self.root}data/{name}']
            if count * dtype.itemsize != member.stop - member.start:
                raise UnreadableError
            self.storages[name] = self.content.tensor(dtype, count, member.start)
        if self.storages[name].dtype != dtype:
            raise UnreadableError
        return self.storages[name]


class _Old:
    """A file of before torch 1.6 that is being read: its storages are filled when all of them are known."""

    def __init__(self, content: FileBytes) -> None:
        self.content = content
        self.storages: dict[str, Tensor] = {}
        self.left = len(content.data)  # bytes that storages may still take

    def read(self, names: Names) -> Any:
        pickles, at, found = cut(self.content.data, 0, len(self.content.data)), 0, []
        for allowed in ({}, {}, {}, names, {}):
            value, at = unpickle(pickles, allowed, self.storage, at)
            found.append(value)
            if found[0] != _MAGIC:
                raise UnreadableError
        _, protocol, system, result, order = found
        if protocol != _PROTOCOL or system['little_endian'] is not True or sorted(order) != sorted(self.storages):
            raise UnreadableError
        for name in order:
            storage = self.storages[name]
            said = int.from_bytes(cut(self.content.data, at, at + _COUNT_BYTES), 'little')
            if said != storage.numel():
                raise UnreadableError
            at += _COUNT_BYTES
            storage.copy_(self.content.tensor(storage.dtype, said, at))
            at += said * storage.itemsize
        return result

    def storage(self, asked: Any) -> Tensor:
        """All values of a storage, in one dimension; they are not there yet."""
        dtype, name, count, *view = _asked(asked)
        if name not in self.storages:
            self.left -= count * dtype.itemsize
            if self.left < 0:
                raise UnreadableError
            self.storages[name] = torch.empty(count, dtype=dtype)
        if self.storages[name].dtype != dtype or any(view):
            raise UnreadableError
        return self.storages[name]


def _asked(asked: Any) -> tuple[Any, ...]:
    """What a pickle says of a storage: type of its values, name, how many; where it lay does not matter."""
    if type(asked) is not tuple:
        raise UnreadableError
    word, dtype, name, _, count, *view = asked
    right = word == 'storage' and isinstance(dtype, torch.dtype) and type(name) is str
    if not right or type(count) is not int or count < 0:
        raise UnreadableError
    return dtype, name, count, *view
