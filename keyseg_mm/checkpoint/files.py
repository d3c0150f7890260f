"""Reading checkpoints safely, never a pickle that could run code, and writing them whole or not at all."""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import IO, Any

import torch

from keyseg_mm.atomic import write_new
from keyseg_mm.checkpoint.archive import read_archive
from keyseg_mm.checkpoint.filebytes import FileBytes
from keyseg_mm.checkpoint.known import Names, RefusedError
from keyseg_mm.checkpoint.layout import SUFFIXES
from keyseg_mm.checkpoint.limits import check_extent
from keyseg_mm.checkpoint.safetensors import read_safetensors, write_safetensors
from keyseg_mm.checkpoint.values import NAMES
from keyseg_mm.errors import KeysegError
from keyseg_mm.stamp import Stamp, stamps_of

Source = str | PathLike[str] | bytes | bytearray | memoryview | IO[bytes]


def read_checkpoint(source: Source | mmap.mmap, mapped: bool = True) -> dict[str, Any]:
    """Read a ``.pth`` or ``.safetensors`` file to the CPU, mapped where that can be.

    Args:
        source: a path, an open binary file, the bytes themselves, or a file that is mapped already.
        mapped: leave the bytes of a file in the file until they are asked for; where they are to be overwritten,
            reading them at once is quicker.

    Returns:
        The checkpoint as a dict with ``state_dict``; a bare state_dict is wrapped.

    Raises:
        KeysegError: missing, truncated, no checkpoint, or a pickle that asks for code to be run.
    """
    content, where = read_content(source, NAMES, mapped), name_of(source)
    if not isinstance(content, dict):
        raise KeysegError(f'{where} holds no state_dict')
    content = content if 'state_dict' in content else {'state_dict': content}
    check_names(content['state_dict'], where)
    return content


def check_names(weights: Any, where: str) -> None:
    """Make sure that something is a state_dict.

    Raises:
        KeysegError: it is none.
    """
    if not isinstance(weights, dict):
        raise KeysegError(f'{where} holds no state_dict, but {type(weights).__name__}')
    for name in weights:
        if not isinstance(name, str):
            raise KeysegError(f'{where} holds no state_dict: {name!r:.80} is no name')


def read_content(source: Source | mmap.mmap, names: Names = NAMES, mapped: bool = True) -> Any:
    """What a file holds, whatever it is.

    Args:
        source, mapped: as of :func:`read_checkpoint`, with its errors.
        names: what its pickle may name.
    """
    where = name_of(source)
    if isinstance(source, (str, PathLike)):
        source = Path(source)
        if not source.is_file():
            raise KeysegError(f'{where}: no such file')
    elif isinstance(source, (bytearray, memoryview)):
        source = bytes(source)
    elif hasattr(source, 'read') and not isinstance(source, mmap.mmap):
        source = source.read()
    if not isinstance(source, (Path, bytes, mmap.mmap)):
        kind = type(source).__name__
        raise KeysegError(f'a checkpoint is read from a path, an open binary file or bytes, and this is a {kind}')
    try:
        content = FileBytes(source, mapped)
        try:
            found = read_safetensors(content) if _is_safetensors(source) else read_archive(content, names)
        finally:
            content.close()
        check_extent(found, len(content.data))
        return found
    except RefusedError as error:
        raise KeysegError(
            f'{where} holds more than weights ({error!s:.80}): reading it would let it run code, so it was not read. '
            'If you trust where it comes from, save its state_dict alone, and use that'
        ) from None
    except OSError as error:
        raise KeysegError(f'{where} could not be read: {error.strerror or error}') from None
    except Exception:  # a damaged file stumbles over anything
        raise KeysegError(f'{where} is cut short or no checkpoint; restore it from a copy') from None


def name_of(source: Source | mmap.mmap) -> str:
    """How a message calls a file."""
    return str(source) if isinstance(source, (str, PathLike)) else 'this checkpoint'


def _is_safetensors(source: Path | bytes | mmap.mmap) -> bool:
    """By its name, or where it has none by its first bytes: the length of a header, and the header's brace."""
    return source.suffix in SUFFIXES if isinstance(source, Path) else source[8:9] == b'{'


def write_checkpoint(
    path: str | Path,
    state_dict: Mapping[str, Any],
    meta: Mapping[str, Any],
    overwrite: bool = False,
    others: Mapping[str, Any] | None = None,
    private: bool = False,
) -> None:
    """Write a ``.pth`` or ``.safetensors`` file.

    Args:
        path: file to make; see :func:`keyseg_mm.atomic.write_new`.
        state_dict: with its stamp, if it has one.
        meta: plain values. A ``.safetensors`` file keeps them as JSON in its metadata.
        overwrite: replace an existing file.
        others: what else a ``.pth`` file is to hold, by name.
        private: let its owner alone read it.

    Raises:
        KeysegError: it could not be written whole; nothing is left behind.
    """
    write = write_safetensors if Path(path).suffix in SUFFIXES else torch.save
    content = {'meta': dict(meta), 'state_dict': dict(state_dict), **(others or {})}
    try:
        write_new(path, lambda file: write(content, file), 0o600 if private else 0o666, overwrite=overwrite)
    except (RuntimeError, ValueError) as error:
        if isinstance(error, KeysegError):
            raise
        cause = getattr(error, '__context__', None)
        words = cause.strerror if isinstance(cause, OSError) else str(error).splitlines()[0]
        raise KeysegError(f'could not write {path}: {words}') from None


def stamps_in(path: str | Path) -> dict[str, Stamp]:
    """The stamps of a checkpoint file, by module prefix; empty for a plain checkpoint."""
    return stamps_of(read_checkpoint(path)['state_dict'])
