"""What is left when a command was killed: by the content of every file, whatever its name."""

from __future__ import annotations

import hashlib
import json
import re
import stat
from dataclasses import asdict, dataclass, field
from pathlib import Path

import cv2
import torch

from keyseg_mm import read_key_file
from keyseg_mm.atomic import is_key_file
from keyseg_mm.checkpoint.files import read_checkpoint
from keyseg_mm.checkpoint.opened import open_checkpoint
from keyseg_mm.errors import KeysegError
from keyseg_mm.runtime.leaks import Needles
from keyseg_mm.seal.sections import sealed_stamp
from tests.support.kills.commands import IDENTITY, KEY, OTHER, Command

CHECKPOINTS = ('.pth', '.safetensors')
# what the host writes beside its checkpoints, in its own way: nothing of it is secret, and a run does not depend on it
_HOSTS = re.compile(r'(\.log|last_checkpoint|vis_data/.*|\d+/\d+\.json)$')
_SAMPLE = 64  # bytes of a tensor


@dataclass
class Findings:
    """Names of files, by what is wrong with them."""

    changed: list[str] = field(default_factory=list)
    half: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    secret: list[str] = field(default_factory=list)
    wide: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return any(asdict(self).values())


def digests(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file below a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob('*'))
        if path.is_file()
    }


def pattern(name: str) -> str:
    """A file's name without its numbers, which tell times and iterations."""
    return re.sub(r'\d+', '#', name)


def samples(made: Path) -> list[bytes]:
    """Some bytes of every plain tensor that is not like others."""
    found = []
    for name in ('plain.pth', 'setr.pth'):
        for tensor in read_checkpoint(made / name)['state_dict'].values():
            values = tensor.flatten()[tensor.numel() // 2 :][: _SAMPLE // 4]
            if tensor.dtype == torch.float32 and len(values.unique()) == _SAMPLE // 4:
                found.append(values.numpy().tobytes())
    return found


class Look:
    """Looks at what a command left behind.

    Args:
        made: what it was given.
    """

    def __init__(self, made: Path) -> None:
        self.made, self.before, self._plain = made, digests(made), samples(made)
        self._keys = [Needles(key) for key in (KEY, OTHER, IDENTITY)]

    def __call__(self, folder: Path, command: Command, expected: dict[str, str]) -> Findings:
        """What is wrong.

        Args:
            folder: with ``run``, where it wrote, and ``tmp``, for temporary files.
            command: that ran.
            expected: patterns of the files that it makes, with the digest where that is always the same.
        """
        after = digests(self.made)
        names = sorted(self.before.keys() | after.keys())
        found = Findings(changed=[name for name in names if self.before.get(name) != after.get(name)])
        for path in sorted(folder.rglob('*')):
            if path.is_file():
                self._look_at(path, str(path.relative_to(folder)), command, expected, found)
        return found

    def _look_at(self, path: Path, name: str, command: Command, expected: dict[str, str], found: Findings) -> None:
        content = path.read_bytes()
        is_output = name.startswith('run/') and pattern(name) in expected
        is_open = bool(re.fullmatch(command.opens, pattern(name)))
        holds = {'plain weights'} if any(sample in content for sample in self._plain) else set()
        if is_key_file(path) or any(needles.search(name, content) for needles in self._keys):
            holds.add('a key')
        if path.suffix in CHECKPOINTS and is_output and not is_open and not _is_sealed(path):
            holds.add('plain weights')
        meant = is_output and ('a key' not in holds or path.suffix == '.key') and (is_open or not holds - {'a key'})
        if not is_output:
            found.left.append(name)
        if holds and not meant:
            found.secret.append(name)
        is_signed = is_output and path.suffix in CHECKPOINTS and _is_sealed(path)  # in the open, for research
        if stat.S_IMODE(path.stat().st_mode) & 0o077 and (holds and not is_signed or not is_output):
            found.wide.append(name)
        same = hashlib.sha256(content).hexdigest() in (expected.get(pattern(name)), *self.before.values())
        if is_output and not same and not _HOSTS.search(name) and not is_whole(path, name):
            found.half.append(name)


def _is_sealed(path: Path) -> bool:
    try:
        return sealed_stamp(read_checkpoint(path)['state_dict']) is not None
    except KeysegError:
        return False


def is_whole(path: Path, name: str) -> bool:
    """Whether a file can be read to its end, and opened by whichever key it is for."""
    try:
        if path.suffix in CHECKPOINTS:
            stamp = sealed_stamp(read_checkpoint(path)['state_dict'])
            keys = [
                KEY,
                OTHER,
                IDENTITY,
                KEY.licensee('ACME'),
                *(read_key_file(p) for p in path.parents[1].rglob('*.key') if p.is_file()),
            ]
            open_checkpoint(path, next(k for k in keys if k.id in stamp.key_ids) if stamp else None)
        elif path.suffix == '.key':
            read_key_file(path, lambda _: 'correct horse')
        elif path.suffix == '.png':
            return path.read_bytes().endswith(b'IEND\xaeB`\x82') and cv2.imread(str(path)) is not None
        elif path.suffix == '.json':
            json.loads(path.read_text())
        elif path.suffix == '.html':
            return path.read_text().rstrip().endswith('</html>')
        elif path.suffix == '.py':
            compile(path.read_text(), name, 'exec')
            return path.stat().st_size > 0
    except (KeysegError, ValueError, SyntaxError, StopIteration):
        return False
    return True
