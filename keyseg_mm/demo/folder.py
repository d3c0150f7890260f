"""The folder that the demo writes to: nothing outside it is touched, and nothing in it that the demo did not make."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from keyseg_mm.atomic import write_new
from keyseg_mm.errors import KeysegError

LIST_NAME = '.made_by_keyseg_demo'


class DemoFolder:
    """An output folder that keeps a list of what was made in it.

    Args:
        path: the folder; made if it is missing.
        names: the entries that the demo is about to make in it.
        overwrite: first remove what an earlier demo made there, and nothing else.

    Raises:
        KeysegError: no folder, not writable, or not empty; with ``overwrite``, something that no demo
            made is in the way.
    """

    def __init__(self, path: Path, names: tuple[str, ...], overwrite: bool = False) -> None:
        self.path, self._names = path, names
        try:
            path.mkdir(parents=True, exist_ok=True)
            if overwrite:
                self._remove_made()
            taken = [name for name in names if os.path.lexists(path / name)]
            if overwrite and taken:
                raise KeysegError(
                    f'{path} holds {", ".join(taken)}, which no demo is known to have made; it was left as it is: '
                    'move it away, or give another folder with --out'
                )
            if not overwrite and any(path.iterdir()):
                raise KeysegError(
                    f'{path} is not empty; give another folder with --out, or --overwrite to replace what an earlier '
                    'demo made there'
                )
            self._foreign = self._files()
            self.note()
        except OSError as error:
            raise KeysegError(
                f'{path} cannot be used as a folder: {error.strerror or error}; give another with --out'
            ) from None

    def note(self, finished: bool = False) -> None:
        """Bring the list up to date.

        Until the demo has finished it names the entries to come as well, whole: a process that is killed writes no
        list, and what it made must not stand in the way of the next one.
        """
        made = sorted(self._files() - self._foreign - {LIST_NAME}) + ([] if finished else list(self._names))
        write_new(self.path / LIST_NAME, lambda file: file.write('\n'.join(made).encode()), overwrite=True)

    def _files(self) -> set[str]:
        return {p.relative_to(self.path).as_posix() for p in self.path.rglob('*') if p.is_symlink() or not p.is_dir()}

    def _remove_made(self) -> None:
        """Remove the listed files, the list, the folders that are empty then, and what a killed demo had begun."""
        listing = self.path / LIST_NAME
        if not listing.is_file():
            return
        root = self.path.resolve()
        for file in [*(root / name for name in listing.read_text(encoding='utf-8').splitlines()), root / LIST_NAME]:
            if not file.parent.resolve().is_relative_to(root) or file.name in ('', '..'):
                continue  # a list that was tampered with
            if file.is_dir() and not file.is_symlink():
                if file.parent == root and file.name in self._names:
                    shutil.rmtree(file)
                continue
            file.unlink(missing_ok=True)
            for parent in file.parents:
                if parent == root or not parent.is_dir() or any(parent.iterdir()):
                    break
                parent.rmdir()
