"""What a comparison was asked for, noted in its folder, and whom it tells how far it is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keyseg_mm.atomic import write_json
from keyseg_mm.errors import KeysegError

OPTIONS, KEY = 'options.json', 'compare.key'
RIGHT, NONE = 'right', 'none'


@dataclass(frozen=True)
class Choices:
    """What all results of a comparison depend on.

    Attributes:
        key: locator.
        suite: of the audit, or ``none``.
        seed: of training and audit.
        wrong_keys: how many.
        options: mmseg's ``--cfg-options``.
        commands: the module whose ``main`` runs the commands of ``keyseg``.
    """

    key: str
    suite: str
    seed: int
    wrong_keys: int
    options: Mapping[str, Any]
    commands: str

    @property
    def testers(self) -> dict[str, str]:
        """Who tests, and with which key, by its locator."""
        wrong = {f'wrong-{i}': f'random:{i}' for i in range(1, self.wrong_keys + 1)}
        return {RIGHT: self.key, NONE: 'none', **wrong}


@dataclass(frozen=True)
class Progress:
    """Told what is going on; a command draws it.

    Attributes:
        say: takes a line.
        begin: takes how many steps begin, and what they do, in words.
        step: called as each of them is finished.
        detail: takes how far those under way are, in words.
    """

    say: Callable[[str], object]
    begin: Callable[[int, str], object]
    step: Callable[[], object]
    detail: Callable[[str], object]


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
        foreign = sorted(path.name for path in out.iterdir() if path.name != KEY)
        if foreign and not marker.exists():
            raise KeysegError(
                f'{out} holds {", ".join(foreign[:3])}{" ..." if len(foreign) > 3 else ""}, and no comparison that '
                'could go on; give another folder with --out'
            )
        if not marker.exists():
            write_json(marker, asked)
        before = json.loads(marker.read_text(encoding='utf-8'))
    except OSError as error:
        raise KeysegError(f'{out} cannot be used as a folder: {error.strerror or error}') from None
    except ValueError:
        raise KeysegError(f'{marker} is damaged; give another folder with --out') from None
    changed = [name for name in {**before, **asked} if before.get(name) != asked.get(name)]
    if changed:
        was = '; '.join(f'{name} was {before.get(name)!r} and is {asked.get(name)!r}' for name in changed)
        raise KeysegError(
            f'{out} holds a comparison with other options, and their results cannot stand side by side: {was}. Give '
            'the same options to go on, or another folder with --out'
        )
