"""What a comparison was asked for, noted in its folder: all results in it depend on the same."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from keyseg_mm.atomic import write_json
from keyseg_mm.errors import KeyFileError, KeysegError
from keyseg_mm.keys.key import SecretKey
from keyseg_mm.keys.keyfile import write_key_file
from keyseg_mm.keys.locator import locate, refuse_secret

NOTED, KEY = 'options.json', 'compare.key'
RIGHT, NONE = 'right', 'none'


@dataclass(frozen=True)
class Choices:
    """What all results of a comparison depend on.

    Attributes:
        configs: paths of the plain configs.
        cfg_options: put into each of them.
        plain: path of a trained plain checkpoint of the first config, if there is one.
        key: locator.
        seed: of training and audit.
        suite: of the audit, or ``none``.
        wrong_keys: how many.
    """

    configs: Sequence[str]
    cfg_options: Sequence[str]
    plain: str | None
    key: str
    seed: int
    suite: str
    wrong_keys: int

    @property
    def testers(self) -> dict[str, str]:
        """Who tests, and with which key, by its locator."""
        wrong = {f'wrong-{i}': f'random:{i}' for i in range(1, self.wrong_keys + 1)}
        return {RIGHT: self.key, NONE: 'none', **wrong}


def locator_of(out: Path, wanted: str | None) -> str:
    """The locator of a comparison's key, which means the same wherever it is followed from.

    Args:
        out: the comparison's folder.
        wanted: what the user gave; None for a key of the comparison's own.

    Raises:
        KeyFileError: it leads to no real key. Standard input is none: each step follows the locator anew.
    """
    if wanted is None:
        return f'file:{(out / KEY).resolve()}'
    refuse_secret(wanted)
    scheme, _, path = wanted.partition(':')
    locator = f'file:{Path(path).expanduser().resolve()}' if scheme == 'file' and path else wanted
    found = locate(locator)
    if found.key is None or found.deliberate:
        raise KeyFileError('--key takes the locator of a real key, as file:PATH')
    return locator


def begin(out: Path, choices: Choices, contents: Sequence[str]) -> None:
    """Take a folder into use, or take it up again; the comparison's own key is made there where it is missing.

    Args:
        out: the folder; made if it is missing.
        choices: what its results depend on.
        contents: fingerprints of the configs.

    Raises:
        KeysegError: it is no folder, holds something else, or was made with other options.
    """
    noted, own, asked = out / NOTED, out / KEY, {**asdict(choices), 'contents of the configs': contents}
    try:
        out.mkdir(parents=True, exist_ok=True)
        foreign = sorted(path.name for path in out.iterdir() if path != own)
        if foreign and not noted.exists():
            raise KeysegError(f'{out} holds {foreign[0]} and no comparison that could go on; give another folder')
        if not noted.exists():
            write_json(noted, asked)
        before = json.loads(noted.read_text(encoding='utf-8'))
    except OSError as error:
        raise KeysegError(f'{out} cannot be used as a folder: {error.strerror or error}') from None
    except ValueError:
        raise KeysegError(f'{noted} is damaged; give another folder with --out') from None
    changed = [name for name, value in asked.items() if before.get(name) != value]
    if changed:
        raise KeysegError(
            f'{out} holds a comparison with other options ({", ".join(changed)}), and their results cannot stand side '
            'by side. Give the same options to go on, or another folder with --out'
        )
    if choices.key == locator_of(out, None) and not own.exists():
        write_key_file(own, SecretKey.generate(), comment='made by keyseg compare')
    locate(choices.key)
