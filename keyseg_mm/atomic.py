"""Writing files so that nothing is lost: whole or not at all, and never over another file unless told so.

What is being written has no name where the file system knows such files (Linux, most of its file systems): nothing of
it is left whenever the process ends, and nobody can put something else in its place. Elsewhere it is a hidden neighbour
until it is whole, which a process that is killed at once leaves behind. Until then it is for its owner only (0600).
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import signal
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from keyseg_mm.errors import KeysegError

_KINDS = {
    stat.S_IFDIR: 'a folder',
    stat.S_IFLNK: 'a link',
    stat.S_IFIFO: 'a pipe',
    stat.S_IFSOCK: 'a socket',
    stat.S_IFCHR: 'a device',
    stat.S_IFBLK: 'a device',
}
# what the line of a key file that is not a comment begins with, without spaces, dashes and quotes, in capitals
_KEY_MARKS, _SEALED_MARK = (b'KEYSEGSECRETKEY1', b'KEYSEGIDENTITY1'), b'KEYSEG_MMSEALEDKEY'
_HEAD = 64 * 1024  # bytes of a file that tell whether it is a key file
_PAUSE = 0.05  # seconds: whoever writes a small file is done before
_sync = getattr(os, 'fdatasync', os.fsync)  # macOS has one of the two
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)


def write_new(
    path: str | os.PathLike[str],
    write: Callable[[IO[bytes]], object],
    mode: int = 0o666,
    overwrite: bool = False,
) -> None:
    """Write a file atomically: beside its place, to the disk, then under its name.

    Args:
        path: the file to make.
        write: gets the open binary file, which has no name of its own to be opened by.
        mode: permissions it ends with; the process's umask is applied on top. Key files use 0o600.
        overwrite: replace an existing file, see :func:`refuse_existing`. Otherwise it is left alone and an error
            raised, also when it appears while this one is being written.

    Raises:
        KeysegError: it may not be replaced, or its folder is missing or not writable. Nothing is left behind.
    """
    path = Path(path)
    _refuse(path, overwrite)
    try:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            _write(path.name, folder, write, mode, overwrite)
        finally:
            os.close(folder)
    except FileExistsError:
        raise _exists(path) from None
    except OSError as error:
        raise KeysegError(f'could not write {path}: {error.strerror or error}') from None


def _write(name: str, folder: int, write: Callable[[IO[bytes]], object], mode: int, overwrite: bool) -> None:
    umask = os.umask(0)
    os.umask(umask)
    hidden = f'.keyseg-{secrets.token_hex(8)}'
    try:
        handle, is_named = _open(hidden, folder)
        with open(handle, 'w+b') as file:
            with _undisturbed(), _on_its_way(handle):
                write(file)
            file.flush()
            os.fchmod(handle, mode & ~umask)
            os.fsync(handle)
            if not is_named:  # linkat(2); a link over another file there is not, so that one takes two steps
                target = hidden if overwrite else name
                os.link(f'/proc/self/fd/{handle}', target, dst_dir_fd=folder, follow_symlinks=True)
        if overwrite:
            os.replace(hidden, name, src_dir_fd=folder, dst_dir_fd=folder)
        elif is_named:
            _link_new(hidden, name, folder)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(hidden, dir_fd=folder)


@contextmanager
def _on_its_way(handle: int) -> Iterator[None]:
    """Let the disk work on what was written while the rest is still being made: it takes as long as making it.

    Raises:
        OSError: the disk did not take it. The system tells that once, so that the last sync would not.
    """
    is_done, failed = threading.Event(), list[OSError]()

    def follow() -> None:
        while not failed and not is_done.wait(_PAUSE):
            try:
                _sync(handle)
            except OSError as error:
                failed.append(error)

    thread = threading.Thread(target=follow, name='keyseg_mm sync', daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_done.set()
        thread.join()
    if failed:
        raise failed[0]


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Let signals wait that Python answers, by raising an error mostly.

    torch's writer calls the file from C++: it takes that error for one of the file, or aborts the process.
    """
    came: list[int] = []
    kept: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():  # no other answers signals
        numbers = [getattr(signal, name) for name in ('SIGINT', 'SIGTERM', 'SIGHUP') if hasattr(signal, name)]
        kept = {number: handler for number in numbers if callable(handler := signal.getsignal(number))}
    for number in kept:
        signal.signal(number, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
        for number in came[:1]:
            signal.raise_signal(number)


def _open(hidden: str, folder: int) -> tuple[int, bool]:
    """A file for its owner only: without a name, or hidden and with one; and whether it has one."""
    unnamed = getattr(os, 'O_TMPFILE', 0)
    if unnamed and Path('/proc/self/fd').is_dir():
        with suppress(OSError):  # the file system knows none; what else there may be shows below
            return os.open('.', unnamed | os.O_RDWR, 0o600, dir_fd=folder), False
    return os.open(hidden, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=folder), True


def _link_new(hidden: str, name: str, folder: int) -> None:
    """Give the finished file its name; unlike a rename, a link fails where the name is taken meanwhile."""
    try:
        os.link(hidden, name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        # a file system without hard links: the check before writing has to do
        os.rename(hidden, name, src_dir_fd=folder, dst_dir_fd=folder)


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


def make_folder(folder: str | os.PathLike[str]) -> None:
    """Make a folder that secrets may come to lie in, where it is missing: all new parts of it for their owner only.

    Raises:
        KeysegError: it cannot be made.
    """
    for part in reversed([Path(folder), *Path(folder).parents]):
        try:
            if not part.is_dir():
                part.mkdir(mode=0o700, exist_ok=True)
        except (OSError, ValueError) as error:  # ValueError: a path that none can have
            raise KeysegError(f'could not make the folder {part}: {_why(error)}') from None


def refuse_existing(path: str | os.PathLike[str], overwrite: bool = False) -> None:
    """Refuse a target that :func:`write_new` would refuse, before the work for it is done.

    To be replaced it has to be an ordinary file, and no key file: a lost key cannot be made again. What a link leads
    to is not replaced either.

    Raises:
        KeysegError: it may not be replaced, or its folder is missing or not writable.
    """
    path = Path(path)
    _refuse(path, overwrite)
    try:
        with tempfile.TemporaryFile(dir=path.parent):  # permissions alone do not tell: root, read-only file systems
            pass
    except OSError as error:
        raise KeysegError(f'could not write {path}: {path.parent}: {error.strerror or error}') from None


def is_key_file(path: str | os.PathLike[str]) -> bool:
    """Whether a file looks like a key file or an identity of ours, told from its first bytes, in whatever coding."""
    try:
        with open(path, 'rb') as file:
            head = file.read(_HEAD)
    except (OSError, ValueError):
        return False
    for coding in (b'\0', b'\xef\xbb\xbf', b'\xff\xfe', b'\xfe\xff', b' ', b'-', b'"'):
        head = head.replace(coding, b'')
    lines = [line.strip().upper() for line in head.splitlines()]
    return any(line.startswith(_KEY_MARKS) or (line[:1] == b'{' and _SEALED_MARK in line) for line in lines)


def _refuse(path: Path, overwrite: bool) -> None:
    """Refuse to write over what is there, unless it is an ordinary file that may be replaced."""
    try:
        kind = stat.S_IFMT(os.lstat(path).st_mode)
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise KeysegError(f'could not write {path}: {_why(error)}') from None
    if not overwrite or kind == stat.S_IFDIR:
        raise _exists(path)
    if kind != stat.S_IFREG:
        what = _KINDS.get(kind, 'no ordinary file')
        raise KeysegError(f'{path} is {what}, which is never replaced, and was left as it is; give another name')
    if is_key_file(path):
        raise KeysegError(
            f'{path} holds a key, which is never replaced: a lost key cannot be made again; '
            'give another name, or move the key file away'
        )


def _exists(path: Path) -> KeysegError:
    return KeysegError(f'{path} exists already and was left as it is; give another name')


def _why(error: OSError | ValueError) -> str:
    return getattr(error, 'strerror', None) or str(error)
