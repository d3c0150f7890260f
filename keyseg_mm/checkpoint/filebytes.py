"""The bytes of a file, and tensors made of them: views of its pages, or read at once."""

from __future__ import annotations

import mmap
from contextlib import suppress
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from keyseg_mm.checkpoint.known import UnreadableError

Data = mmap.mmap | bytearray


class FileBytes:
    """A file that is being read.

    Args:
        source: a path, the bytes themselves, or a file that is mapped already.
        mapped: tensors lie in the file's own pages, and in memory only when they are touched; what is written to them
            does not reach the file. Otherwise they are read into memory at once.

    Attributes:
        data: all of it, and not in memory where it is a file.
    """

    def __init__(self, source: Path | bytes | mmap.mmap, mapped: bool) -> None:
        self._file: IO[bytes] | None = None
        if not isinstance(source, Path):
            self.data: Data = bytearray(source) if isinstance(source, bytes) else source
            return
        file = open(source, 'rb')  # noqa: SIM115 - closed with what was read
        try:
            self.data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except ValueError:  # an empty file
            self.data = bytearray()
        if mapped:
            file.close()
        else:
            self._file = file

    def close(self) -> None:
        """Close the file; tensors in its pages stay."""
        with suppress(AttributeError):
            self._file.close()  # type: ignore[union-attr]

    def tensor(self, dtype: torch.dtype, count: int, start: int) -> Tensor:
        """So many values from there on.

        Raises:
            UnreadableError: it ends before.
        """
        size = count * dtype.itemsize
        if count < 0 or start < 0 or start + size > len(self.data):
            raise UnreadableError
        if self._file is None and count and not start % dtype.itemsize:
            return torch.frombuffer(self.data, dtype=dtype, count=count, offset=start)
        made = torch.empty(count, dtype=dtype)
        room = memoryview(made.view(torch.uint8).numpy().data)
        if count and self._file is None:
            room[:] = self.data[start : start + size]
        elif count and self._file is not None:
            self._file.seek(start)
            if self._file.readinto(room) != size:  # type: ignore[attr-defined]
                raise UnreadableError
        return made
