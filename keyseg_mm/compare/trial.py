"""A method applied to a config: the steps by which it is made, tested, attacked and timed, and what is read of each."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from mmengine.config import Config

from keyseg_mm.checkpoint.files import read_checkpoint
from keyseg_mm.compare.choices import NONE, RIGHT, Choices
from keyseg_mm.compare.configs import key_options, protect
from keyseg_mm.compare.data import TestData
from keyseg_mm.compare.methods import Method
from keyseg_mm.compare.rows import NOT_APPLICABLE, Audited, Row, Timed
from keyseg_mm.compare.steps import Step
from keyseg_mm.errors import KeysegError
from keyseg_mm.locking.scheme import key_space
from keyseg_mm.stamp import stamps_of

_AUDITED = (0, 4)  # exit statuses of `keyseg audit` with a result
_MEASURE = 'keyseg_mm.compare.measure'


@dataclass
class Subject:
    """One config of a comparison.

    Attributes:
        cfg: the plain config.
        file: name of its file.
        folder: for all that is made of it.
        data: what its test data say.
        choices: what all results depend on.
        given: a trained plain checkpoint, if there is one.
        commands: the module whose ``main`` runs the commands of ``keyseg``.
        trials: the methods applied to it, the plain model first.
    """

    cfg: Config
    file: str
    folder: Path
    data: TestData
    choices: Choices
    given: str | None
    commands: str
    trials: list[Trial] = field(default_factory=list)

    @property
    def rows(self) -> list[Row]:
        """What is known of each method."""
        return [trial.row for trial in self.trials]


class Trial:
    """A method applied to a config: its folder, its row, and the steps that fill it.

    Args:
        subject: the config.
        method: the method.
        plain: the plain model's trial; None if it is this one.
    """

    def __init__(self, subject: Subject, method: Method, plain: Trial | None) -> None:
        self.subject, self.method, self.plain, self.choices = subject, method, plain, subject.choices
        self.title = f'{subject.folder.name}, {method.title}'
        self.folder = subject.folder / method.name
        self.config, self.checkpoint = self.folder / 'config.py', Path()
        self.row = Row(method.name, method.title)
        self.cfg = copy.deepcopy(subject.cfg)

    def prepare(self) -> None:
        """Find out whether the method can be applied, before anything long begins, and write its config."""
        try:
            protect(self.cfg, self.method, self.choices.key)
            self.folder.mkdir(parents=True, exist_ok=True)
            self.cfg.dump(self.config)
        except KeysegError as error:
            self.row.fail(str(error), NOT_APPLICABLE)
        except Exception as error:  # whatever it is, the other methods go on
            self.row.fail(f'{type(error).__name__}: {error}')

    def training(self) -> list[Step]:
        """Train the method's model."""
        if self.method.lock:
            return []
        if self.plain is None and self.subject.given is not None:
            self._made(Path(self.subject.given))
            return []
        work = self.folder / 'train'
        # the host goes on from its last checkpoint only where no other one is given to start from
        more = ['--resume', '--cfg-options', 'load_from=None'] if (work / 'last_checkpoint').exists() else []
        return [self._step('train', 'training', ['train', self.config, '--work-dir', work, *more])]

    def locking(self) -> list[Step]:
        """Make the method's model from the plain one."""
        if not self.method.lock or self.plain is None:
            return []
        if self.plain.row.why:
            self.row.fail('there is no plain checkpoint to lock: the plain training failed')
            return []
        command, *how = self.method.lock
        given = [command, self.plain.config, self.plain.checkpoint, '--key', self.choices.key]
        given += ['--out', self.folder / 'locked.pth', '--overwrite', *how]
        return [self._step('lock', 'locking the plain checkpoint', given)]

    def judging(self) -> list[Step]:
        """Test the model with each key, by the host's test tool, and attack it."""
        if self.plain is None:
            return [self._test(RIGHT, '', 'testing as it is')]
        steps = []
        for who, key in self.choices.testers.items():
            steps.append(self._test(who, key, f'testing with {"the right key" if who == RIGHT else f"key {key}"}'))
        if self.choices.suite != 'none':
            given = ['audit', self.config, self.checkpoint, '--out', self.folder / 'audit', '--key', self.choices.key]
            given += ['--suite', self.choices.suite, '--seed', self.choices.seed]
            steps.append(self._step('audit', f'audit, suite {self.choices.suite}', given, fine=_AUDITED))
        return steps

    def _test(self, who: str, key: str, words: str) -> Step:
        work = self.folder / f'test-{who}'
        given = ['test', self.config, self.checkpoint, '--work-dir', work]
        if who in (RIGHT, NONE) and isinstance(self.cfg.get('test_evaluator'), dict):
            given += ['--out', work / 'labels']
        if key:
            given += ['--cfg-options', *(f'{option}={key}' for option in key_options(self.cfg))]
        return self._step(work.name, words, given)

    def timing(self) -> list[Step]:
        """Time the model beside the plain one."""
        if self.plain is None or self.plain.row.why:
            return []
        out = self.folder / 'overhead.json'
        given = [self.config, self.checkpoint, self.plain.config, self.plain.checkpoint, out]
        return [self._step('overhead', 'timing', given, module=_MEASURE)]

    def _step(
        self, name: str, words: str, given: Iterable[object], module: str = '', fine: tuple[int, ...] = (0,)
    ) -> Step:
        return Step(self.folder, name, words, tuple(map(str, given)), module or self.subject.commands, fine)

    def read(self, step: Step) -> None:
        """Read what a step left behind into the row.

        Raises:
            KeysegError: it is of no use.
        """
        kind, _, who = step.name.partition('-')
        if kind == 'train':
            self._trained(self.folder / 'train' / 'last_checkpoint')
        elif kind == 'lock':
            self._made(self.folder / 'locked.pth')
        elif kind == 'test':
            self._tested(who, self.folder / step.name)
        elif kind == 'audit':
            summary = json.loads((self.folder / 'audit' / 'report.json').read_text(encoding='utf-8'))['summary']
            headline, level = summary['headline'], summary['level']
            best, miou = headline['attack']['about']['title'], headline['attack']['score']['miou']
            self.row.audit = Audited('', headline['advantage'], level, best, miou)
        else:
            self.row.overhead = Timed(**json.loads((self.folder / 'overhead.json').read_text(encoding='utf-8')))

    def _trained(self, last: Path) -> None:
        if not last.exists():
            raise KeysegError('the training saved no checkpoint: give its config a CheckpointHook that does')
        self._made(Path(last.read_text(encoding='utf-8').strip()))

    def _made(self, path: Path) -> None:
        tensors = read_checkpoint(path)['state_dict']
        for name, value in tensors.items():
            if isinstance(value, torch.Tensor) and value.is_floating_point() and not torch.isfinite(value).all():
                raise KeysegError(f'the training diverged: {name} has values that are no numbers')
        bits = sum(map(key_space, stamps_of(tensors).values()))
        self.row.key_space = bits if 0 < bits < math.inf else None
        self.checkpoint = path.resolve()

    def _tested(self, who: str, work: Path) -> None:
        found = max(work.glob('*/*.json'), key=lambda path: path.stat().st_mtime, default=None)
        miou = json.loads(found.read_text(encoding='utf-8')).get('mIoU') if found else None
        if not isinstance(miou, (int, float)) or not math.isfinite(miou):
            raise KeysegError(f'the test gave no mIoU ({work}): its evaluator has to be IoUMetric')
        for path in {*(work / 'labels').glob('*.png')} - {*self.subject.data.shown(work / 'labels')}:
            path.unlink()  # as many as there are test photos
        known = {**self.row.miou, who: float(miou)}
        self.row.miou = {who: known[who] for who in self.choices.testers if who in known}

    def pictures(self, who: str) -> list[str]:
        """What the model made of the shown photos, as base64 PNGs."""
        return self.subject.data.segmented(self.folder / f'test-{who}' / 'labels')
