"""Writing files so that nothing is lost: whole or not at all, and never over another file unless told so."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from keyseg_mm.errors import KeysegError


def write_new(
    path: str | os.PathLike[str],
    write: Callable[[IO[bytes]], object],
    mode: int = 0o666,
    overwrite: bool = False,
) -> None:
    """Write a file atomically: to a temporary neighbour, to the disk, then under its name.

    Args:
        path: the file to make.
        write: gets the open binary file; ``file.name`` is the temporary one's path.
        mode: permissions; the process's umask is applied on top. Key files use 0o600.
        overwrite: replace an existing file. Otherwise it is left alone and an error raised, also when it appears while
            this one is being written.

    Raises:
        KeysegError: the file exists, or its folder is missing or not writable. Nothing is left behind.
    """
    path = Path(path)
    try:
        if not overwrite and os.path.lexists(path):
            raise FileExistsError
        _write(path, write, mode, overwrite)
    except FileExistsError:
        raise KeysegError(f'{path} exists already and was left as it is; give another name') from None
    except OSError as error:
        raise KeysegError(f'could not write {path}: {error.strerror or error}') from None


def _write(path: Path, write: Callable[[IO[bytes]], object], mode: int, overwrite: bool) -> None:
    umask = os.umask(0)
    os.umask(umask)
    handle, temporary = tempfile.mkstemp(prefix=f'.{path.name}.', dir=path.parent)  # 0600, O_EXCL
    try:
        os.close(handle)
        with open(temporary, 'r+b') as file:
            write(file)
        with open(temporary, 'rb') as file:  # by name: a writer may have put another file in its place
            os.fchmod(file.fileno(), mode & ~umask)
            os.fsync(file.fileno())
        if overwrite:
            os.replace(temporary, path)
        else:
            _link_new(temporary, path)
    finally:
        if os.path.lexists(temporary):
            os.unlink(temporary)


def write_json(path: str | os.PathLike[str], value: Any, allow_nan: bool = True) -> None:
    """Write JSON for people and programs, whole or not at all, over an older file.

    Args:
        path: the file.
        value: of plain values.
        allow_nan: let NaN and infinity through, which not every reader takes.

    Raises:
        ValueError: NaN or infinity where they are not allowed.
        KeysegError: see :func:`write_new`.
    """
    text = json.dumps(value, indent=1, allow_nan=allow_nan) + '\n'
    write_new(path, lambda file: file.write(text.encode('utf-8')), overwrite=True)


def refuse_existing(path: str | os.PathLike[str], overwrite: bool = False) -> None:
    """Refuse a target that :func:`write_new` would refuse, before the work for it is done.

    Raises:
        KeysegError: the file exists, or its folder is missing or not writable.
    """
    path = Path(path)
    if path.is_dir() or (not overwrite and os.path.lexists(path)):
        raise KeysegError(f'{path} exists already and was left as it is; give another name')
    try:
        with tempfile.TemporaryFile(dir=path.parent):  # permissions alone do not tell: root, read-only file systems
            pass
    except OSError as error:
        raise KeysegError(f'could not write {path}: {path.parent}: {error.strerror or error}') from None


def _link_new(temporary: str, path: Path) -> None:
    """Give the finished file its name; unlike a rename, a link fails where the name is taken meanwhile."""
    try:
        os.link(temporary, path)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
            raise
        os.rename(temporary, path)  # a file system without hard links: the check before writing has to do
