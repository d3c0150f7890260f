"""The folder of a comparison: what was asked for, and a mark for each step that is finished."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from keyseg_mm.atomic import write_json
from keyseg_mm.errors import KeysegError

OPTIONS, KEY = 'options.json', 'compare.key'


def fingerprint(text: str) -> str:
    """A short hash, to tell whether something changed."""
    return hashlib.sha256(text.encode('utf-8')).hexdigest()[:16]


def begin(out: Path, asked: Mapping[str, Any]) -> None:
    """Take a folder into use, or take it up again.

    Args:
        out: the folder; made if it is missing.
        asked: the options that all results in it depend on, each by its name, as JSON takes them.

    Raises:
        KeysegError: it is no folder, holds something else, or was made with other options.
    """
    marker = out / OPTIONS
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not marker.exists():
            foreign = sorted(path.name for path in out.iterdir() if path.name != KEY)
            if foreign:
                raise KeysegError(
                    f'{out} holds {", ".join(foreign[:3])}{" ..." if len(foreign) > 3 else ""}, and no comparison that '
                    'could go on; give another folder with --out'
                )
            write_json(marker, asked)
        before = json.loads(marker.read_text(encoding='utf-8'))
    except OSError as error:
        raise KeysegError(f'{out} cannot be used as a folder: {error.strerror or error}') from None
    except ValueError:
        raise KeysegError(f'{marker} is damaged; give another folder with --out') from None
    asked = json.loads(json.dumps(asked))
    changed = [name for name in {**before, **asked} if before.get(name) != asked.get(name)]
    if changed:
        was = '; '.join(f'{name} was {before.get(name)!r} and is {asked.get(name)!r}' for name in changed)
        raise KeysegError(
            f'{out} holds a comparison with other options, and their results cannot stand side by side: {was}. Give '
            'the same options to go on, or another folder with --out'
        )


class Marks:
    """What is finished of one method, a small JSON file for each step.

    Args:
        folder: of the method.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / 'marks'

    def get(self, step: str) -> dict[str, Any] | None:
        """The result of a finished step; None where it has to be run (again)."""
        try:
            found = json.loads((self.folder / f'{step}.json').read_text(encoding='utf-8'))
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def clear(self) -> None:
        """Forget all steps."""
        for path in self.folder.glob('*.json'):
            path.unlink()

    def set(self, step: str, result: Mapping[str, Any]) -> None:
        """Note a step's result, atomically."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / f'{step}.json', result)
