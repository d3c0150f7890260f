"""The quick way to read a ``.pth`` file: tensors as views of its bytes, by a list of names that holds nothing else.

``torch.load`` with ``weights_only`` reads the same files by an unpickler in Python, which takes longer than opening a
seal. Here the few opcodes and names that ``torch.save`` needs for a state_dict are understood, and nothing else: no
name runs anything but what is below. A file that asks for more, or is otherwise unusual, is left to ``torch.load``.
"""

from __future__ import annotations

import mmap
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from keyseg_mm.checkpoint.opcodes import NotQuick, unpickle

_LOCAL = struct.Struct('<4s5H3L2H')  # a member's header; PKZIP Application Note 4.3.7
_DTYPES = {
    'FloatStorage': torch.float32,
    'DoubleStorage': torch.float64,
    'HalfStorage': torch.float16,
    'BFloat16Storage': torch.bfloat16,
    'LongStorage': torch.int64,
    'IntStorage': torch.int32,
    'ShortStorage': torch.int16,
    'CharStorage': torch.int8,
    'ByteStorage': torch.uint8,
    'BoolStorage': torch.bool,
    'ComplexFloatStorage': torch.complex64,
    'ComplexDoubleStorage': torch.complex128,
}


def read_archive(path: Path, mapped: bool = True) -> Any:
    """What a ``.pth`` file holds.

    Args:
        path: the file.
        mapped: tensors lie in the file's own pages, and in memory only when they are touched; what is written to them
            does not reach the file. Otherwise they are read into memory at once.

    Raises:
        NotQuick: it asks for anything unusual. Nothing was run.
    """
    try:
        with open(path, 'rb') as file, zipfile.ZipFile(file) as archive:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            return _Reader(archive, content, None if mapped else file).read()
    except NotQuick:
        raise
    except Exception as error:  # a damaged file stumbles over anything
        raise NotQuick from error


class _Reader:
    """One file that is being read."""

    def __init__(self, archive: zipfile.ZipFile, content: mmap.mmap, file: IO[bytes] | None) -> None:
        self.content, self.file = content, file
        self.members = {info.filename: info for info in archive.infolist()}
        pickled = [name for name in self.members if name.endswith('/data.pkl') and name.count('/') == 1]
        stored = all(info.compress_type == zipfile.ZIP_STORED for info in self.members.values())
        if len(pickled) != 1 or not stored:
            raise NotQuick
        self.root = pickled[0].removesuffix('data.pkl')
        order = self.members.get(f'{self.root}byteorder')
        if order is not None and self.bytes_of(order) != b'little':
            raise NotQuick
        self.storages: dict[str, Tensor] = {}

    def read(self) -> Any:
        return unpickle(self.bytes_of(self.members[f'{self.root}data.pkl']), _NAMES, self.storage)

    def bytes_of(self, info: zipfile.ZipInfo) -> bytes:
        start = self.start_of(info)
        return bytes(self.content[start : start + info.file_size])

    def start_of(self, info: zipfile.ZipInfo) -> int:
        fields = _LOCAL.unpack_from(self.content, info.header_offset)
        start: int = info.header_offset + _LOCAL.size + fields[-2] + fields[-1]
        if start + info.file_size > len(self.content):
            raise NotQuick
        return start

    def storage(self, asked: Any) -> Tensor:
        """All values of a storage, in one dimension."""
        word, dtype, name, _, count = asked
        if word != 'storage' or not isinstance(dtype, torch.dtype) or not isinstance(name, str):
            raise NotQuick
        if name not in self.storages:
            info = self.members[f'{self.root}data/{name}']
            if type(count) is not int or count * dtype.itemsize != info.file_size:
                raise NotQuick
            start = self.start_of(info)
            if start % dtype.itemsize:
                raise NotQuick
            self.storages[name] = self.values(dtype, count, start)
        if self.storages[name].dtype != dtype:
            raise NotQuick
        return self.storages[name]

    def values(self, dtype: torch.dtype, count: int, start: int) -> Tensor:
        if count and self.file is None:
            return torch.frombuffer(self.content, dtype=dtype, count=count, offset=start)
        made = torch.empty(count, dtype=dtype)
        if count and self.file is not None:
            self.file.seek(start)
            if self.file.readinto(made.view(torch.uint8).numpy().data) != count * dtype.itemsize:  # type: ignore[attr-defined]
                raise NotQuick
        return made


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, requires_grad: Any, hooks: Any, *more: Any) -> Tensor:
    """A view of a storage, inside of it."""
    plain = not requires_grad and not hooks and not more and isinstance(storage, Tensor) and type(offset) is int
    sizes = plain and all(type(n) is int and n >= 0 for n in (offset, *size, *stride)) and len(size) == len(stride)
    if not sizes:
        raise NotQuick
    last = offset + sum((n - 1) * step for n, step in zip(size, stride)) if prod(size) else 0
    if prod(size) and last >= storage.numel():
        raise NotQuick
    found: Tensor = storage.as_strided(size, stride, offset)
    return found


_NAMES: dict[tuple[str, str], Callable[..., Any] | torch.dtype] = {
    ('collections', 'OrderedDict'): OrderedDict,
    ('torch._utils', '_rebuild_tensor_v2'): _tensor,
    **{('torch', name): dtype for name, dtype in _DTYPES.items()},
}
