"""A method tried on a config: a model is made, tested and attacked, each by a command in a process of its own.

A command that did its work leaves a mark, which holds as long as it is younger than the checkpoint that the command
worked on. So what is known is not done again, and what is known of another checkpoint is.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from keyseg_mm.checkpoint.files import read_checkpoint
from keyseg_mm.compare.configs import key_options
from keyseg_mm.compare.methods import NONE, RIGHT, Method, Options, Row
from keyseg_mm.errors import KeysegError
from keyseg_mm.locking.scheme import key_space
from keyseg_mm.mm.config import read_config
from keyseg_mm.stamp import stamps_of

_AUDITED = (0, 4)  # exit statuses of `keyseg audit` with a result
_LONGEST = 400  # characters of a reason
#: Words of the audit's levels where its advantage says nothing by itself.
_LEVELS = {'void': 'void: ', 'idle': 'nothing to steal: '}

_Found = TypeVar('_Found')


class RefusedError(KeysegError):
    """A command ended with an error of this package's own."""


@dataclass(frozen=True)
class Trial:
    """A method, its folder, and all that its commands have to know."""

    method: Method  # the method
    folder: Path  # for all that is made; ``config.py`` in it is the method's config
    options: Options  # of the comparison
    commands: str  # the module whose ``main`` runs the commands of ``keyseg``
    plain: Trial | None  # the trial of the plain model; None for itself

    @property
    def config(self) -> Path:
        """The method's config."""
        return self.folder / 'config.py'

    @property
    def checkpoint(self) -> Path:
        """The method's model, once it was made.

        Raises:
            KeysegError: its training saved none.
        """
        if self.method.lock:
            return self.folder / 'locked.pth'
        if self.plain is None and self.options.plain is not None:
            return Path(self.options.plain)
        last = self.folder / 'train' / 'last_checkpoint'
        if not last.exists():
            raise KeysegError('the training saved no checkpoint: give its config a CheckpointHook that does')
        return Path(last.read_text(encoding='utf-8').strip())

    def attempt(self) -> Row:
        """Make, test and attack the model, as far as that was not done already; says what is known then."""
        row = Row(self.method.name, self.method.title)
        try:
            row.key_space = self._make()
            for who, key in self._testers().items():
                row.miou[who], seconds = self._test(who, key)
                row.seconds = seconds if who == RIGHT else row.seconds
            if self.plain is not None and self.options.suite != 'none':
                row.advantage, row.audit = self._audit()
        except KeysegError as error:
            row.fail(str(error))
        return row

    def _make(self) -> float | None:
        """Train or lock the model; log2 of the number of its tables."""
        if self.method.lock:
            plain = self.plain or self
            source = plain.checkpoint
            given = ['lock', source, '--config', plain.config, '--no-seal', '--key', self.options.key]
            given += ['--out', self.folder / 'locked.pth', '--overwrite', *self.method.lock]
            return self._step('lock', given, self._made, source)
        if self.plain is None and self.options.plain is not None:
            return self._made()
        work = self.folder / 'train'
        # the host goes on from its last checkpoint only where no other one is given to start from
        more = ['--resume', '--cfg-options', 'load_from=None'] if (work / 'last_checkpoint').exists() else []
        return self._step('train', ['train', self.config, '--work-dir', work, *more], self._made)

    def _made(self) -> float | None:
        tensors = read_checkpoint(self.checkpoint)['state_dict']
        for name, value in tensors.items():
            if isinstance(value, torch.Tensor) and value.is_floating_point() and not torch.isfinite(value).all():
                raise KeysegError(f'the training diverged: {name} has values that are no numbers')
        bits = sum(map(key_space, stamps_of(tensors).values()))
        return bits if 0 < bits < math.inf else None

    def _testers(self) -> dict[str, str]:
        """Who tests, and with which key, by its locator; the plain model takes none."""
        if self.plain is None:
            return {RIGHT: ''}
        wrong = {f'wrong-{i}': f'random:{i}' for i in range(1, self.options.wrong_keys + 1)}
        return {RIGHT: self.options.key, NONE: 'none', **wrong}

    def _test(self, who: str, key: str) -> tuple[float, float]:
        """mIoU by the host's test tool, in percent, and the seconds that it took for each photo."""
        work = self.folder / f'test-{who}'
        given: list[object] = ['test', self.config, self.checkpoint, '--work-dir', work]
        if key:
            given += ['--cfg-options', *(f'{option}={key}' for option in key_options(read_config(self.config)))]

        def read() -> tuple[float, float]:
            found = max(work.glob('*/*.json'), key=lambda path: path.stat().st_mtime)
            said = json.loads(found.read_text(encoding='utf-8'))
            if not math.isfinite(said.get('mIoU', math.nan)):
                raise KeysegError(f'the test gave no mIoU ({work}): its evaluator has to be IoUMetric')
            return said['mIoU'], said['time']

        return self._step(work.name, given, read, self.checkpoint)

    def _audit(self) -> tuple[float | None, str]:
        """The advantage, and in words the best attack and what it reached; or why there is none."""
        out, suite, seed = self.folder / 'audit', self.options.suite, self.options.seed
        given = ['audit', self.config, self.checkpoint, '--out', out, '--key', self.options.key]

        def read() -> tuple[float | None, str]:
            summary = json.loads((out / 'report.json').read_text(encoding='utf-8'))['summary']
            best, gained = summary['headline']['attack'], summary['headline']['advantage']
            words = f'{gained:+.1f} ({best["about"]["title"]}, {best["score"]["miou"]:.1f})'
            return gained, _LEVELS.get(summary['level'], '') + words

        try:
            return self._step('audit', [*given, '--suite', suite, '--seed', seed], read, self.checkpoint)
        except RefusedError as error:
            return None, f'none: {error}'

    def _step(
        self, name: str, given: Iterable[object], read: Callable[[], _Found], source: Path | None = None
    ) -> _Found:
        """Run a command, unless its mark holds and what it left behind can be read; gives what is read of that.

        Args:
            name: of its log and its mark.
            given: arguments of the command line.
            read: reads what it left behind.
            source: the checkpoint that it works on.

        Raises:
            KeysegError: the command failed, or what it left behind is of no use.
        """
        mark, log = self.folder / f'{name}.done', self.folder / f'{name}.log'
        if mark.exists() and (source is None or mark.stat().st_mtime_ns >= source.stat().st_mtime_ns):
            with contextlib.suppress(Exception):  # whatever became of its files, it is run again
                return read()
        mark.unlink(missing_ok=True)
        status = run_command(self.commands, [str(part) for part in given], log)
        if status not in (_AUDITED if name == 'audit' else (0,)):
            raise reason_in(log)
        try:
            found = read()
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise KeysegError(f'{log} says that all is well, and {type(error).__name__}: {error}') from None
        mark.touch()
        return found


def run_command(module: str, arguments: Sequence[str], log: Path) -> int:
    """Run ``main(arguments)`` of a module in a process of its own; returns its exit status."""
    code = f'import sys; from {module} import main; sys.exit(main(sys.argv[1:]))'
    with log.open('wb') as file:
        process = subprocess.Popen([sys.executable, '-c', code, *arguments], stdout=file, stderr=subprocess.STDOUT)
        try:
            return process.wait()
        finally:
            process.terminate()  # interrupted: nothing is left running
            process.wait()


def reason_in(log: Path) -> KeysegError:
    """Why a command failed, from the end of its log: an error's message, or the last line of a traceback."""
    lines = [line.strip() for line in log.read_text(encoding='utf-8', errors='replace').splitlines() if line.strip()]
    own = [i for i, line in enumerate(lines) if re.match(r'keyseg [\w-]+: ', line)]
    if own:
        text = ' '.join(lines[own[-1] :]).partition(': ')[2]
        return RefusedError(textwrap.shorten(text, _LONGEST, placeholder=' ...'))
    errors = [line for line in lines if re.match(r'[\w.]*(Error|Exception|Interrupt|Warning)\b', line)]
    text = (errors or lines or ['it printed nothing'])[-1]
    return KeysegError(f'{textwrap.shorten(text, _LONGEST, placeholder=" ...")} ({log})')
