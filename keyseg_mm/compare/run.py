"""The runs of a comparison: methods made, tested, attacked, and timed at the end; what is known is not run again."""

from __future__ import annotations

import json
import math
import secrets
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mmengine.registry import init_default_scope

from keyseg_mm.audit.engine.executor import Executor, Failed, make_executor
from keyseg_mm.checkpoint.files import read_checkpoint
from keyseg_mm.compare.configs import key_options, protect, read, write_child_config
from keyseg_mm.compare.methods import PLAIN, Method
from keyseg_mm.compare.order import NONE, RIGHT, Choices, Progress
from keyseg_mm.compare.photos import read_test_data, segmented
from keyseg_mm.compare.rows import DONE, NOT_APPLICABLE, UNCOUNTABLE, Audited, Figures, Row, Timed
from keyseg_mm.compare.steps import Command, Ended, perform, watched
from keyseg_mm.errors import KeysegError
from keyseg_mm.locking.scheme import key_space
from keyseg_mm.stamp import stamps_of

_AUDITED = (0, 4)  # exit statuses of `keyseg audit` with a result
_MEASURE = 'keyseg_mm.compare.measure'


class Subject:
    """One config of a comparison, its test data, and the methods applied to it.

    Args:
        config: the user's plain config.
        folder: for all that is made of it.
        choices: see :class:`Choices`.
        given: a trained plain checkpoint, if there is one.
    """

    def __init__(self, config: Path, folder: Path, choices: Choices, given: Path | None = None) -> None:
        self.config, self.folder, self.choices, self.given = config, folder, choices, given
        self.base = folder / 'base.py'
        cfg = read(config, choices.options)
        cfg.merge_from_dict({'randomness': {**(cfg.get('randomness') or {}), 'seed': choices.seed}})
        write_child_config(self.base, config, cfg)
        self.data = read_test_data(read(self.base), folder)
        self.trials: list[Trial] = []

    @property
    def figures(self) -> Figures:
        """All rows."""
        rows = [trial.row for trial in self.trials]
        return Figures(self.folder.name, self.config.name, self.data.floor, self.data.photos, rows)


@dataclass(frozen=True)
class Step:
    """A command of a trial, what it does in words, and what reads its result into the trial's row."""

    trial: Trial
    words: str
    command: Command
    read: Callable[[], None]


class Trial:
    """A method applied to a config.

    Args:
        subject: the config.
        method: the method.
        title: for messages.
    """

    def __init__(self, subject: Subject, method: Method, title: str) -> None:
        self.subject, self.method, self.title, self.choices = subject, method, title, subject.choices
        self.folder = subject.folder.resolve() / method.name
        self.config = str(self.folder / 'config.py')
        self.row = Row.kept(self.folder, method.name, method.title)
        self.testers = {RIGHT: ''} if method.name == PLAIN else self.choices.testers

    def prepare(self) -> None:
        """Find out whether the method can be applied, before anything long begins, and write its config."""
        base = self.subject.base
        try:
            cfg = read(base)
            protect(cfg, self.method, self.choices.key)
            write_child_config(Path(self.config), base, cfg)
        except KeysegError as error:
            self.row.fail(str(error), NOT_APPLICABLE)
        except Exception as error:  # whatever it is, the other methods go on
            self.row.fail(f'{type(error).__name__}: {error}')

    @property
    def checkpoint(self) -> str:
        """Path of the checkpoint."""
        return str(self.folder / self.row.checkpoint) if self.row.checkpoint else ''

    def training(self) -> list[Step]:
        """Train the method's model."""
        if self.method.lock or self.row.checkpoint:
            return []
        if self.method.name == PLAIN and self.subject.given is not None:
            self._made(self.subject.given)
            return []
        work = self.folder / 'train'
        last = work / 'last_checkpoint'

        def trained() -> None:
            if not last.exists():
                raise KeysegError('the training saved no checkpoint: give its config a CheckpointHook that does')
            self._made(Path(last.read_text(encoding='utf-8').strip()))

        return [self._step('train', 'training', ['train', self.config, '--work-dir', work], trained, goes_on=last)]

    def locking(self) -> list[Step]:
        """Make the method's model from the plain one."""
        plain = self.subject.trials[0]
        if not self.method.lock or (self.row.checkpoint and self.row.mark.startswith(plain.row.mark)):
            return []
        if not plain.row.checkpoint:
            self.row.fail('there is no plain checkpoint to lock: the plain training failed')
            return []
        command, *how = self.method.lock
        out = self.folder / 'locked.pth'
        arguments = [command, self.subject.base, plain.checkpoint, '--key', self.choices.key, '--out', out]
        made = partial(self._made, out, plain.row.mark)
        return [self._step('lock', 'locking the plain checkpoint', [*arguments, '--overwrite', *how], made)]

    def _made(self, path: Path, of: str = '') -> None:
        """A checkpoint is there; what was known of another one goes."""
        tensors = read_checkpoint(path)['state_dict']
        for name, value in tensors.items():
            if isinstance(value, torch.Tensor) and value.is_floating_point() and not torch.isfinite(value).all():
                raise KeysegError(f'the training diverged: {name} has values that are no numbers')
        stamps = stamps_of(tensors)
        bits = sum(map(key_space, stamps.values())) if stamps else None
        path, row = path.resolve(), Row(self.method.name, self.method.title)
        row.checkpoint = str(path.relative_to(self.folder) if path.is_relative_to(self.folder) else path)
        row.key_space = UNCOUNTABLE if bits is not None and math.isinf(bits) else bits
        row.mark = of + secrets.token_hex(8)
        self.row = row
        row.keep(self.folder)

    def judging(self) -> list[Step]:
        """Test the model with each key, by the host's test tool, and attack it."""
        if not Path(self.checkpoint).is_file():
            self.row.fail(f'{self.checkpoint} is gone; remove {self.folder} to make it again')
            return []
        steps = [self._test(who, key) for who, key in self.testers.items() if who not in self.row.miou]
        if self.method.name != PLAIN and self.choices.suite != 'none' and self.row.audit is None:
            out = self.folder / 'audit'
            given = ['--key', self.choices.key, '--suite', self.choices.suite, '--seed', self.choices.seed]
            arguments = ['audit', self.config, self.checkpoint, '--out', out, *given]
            audited = partial(self._audited, out / 'report.json')
            steps.append(self._step('audit', f'audit, suite {self.choices.suite}', arguments, audited, fine=_AUDITED))
        return steps

    def _test(self, who: str, key: str) -> Step:
        cfg, work = read(Path(self.config)), self.folder / f'test-{who}'
        arguments = ['test', self.config, self.checkpoint, '--work-dir', work]
        if who in (RIGHT, NONE) and isinstance(cfg.get('test_evaluator'), dict):
            arguments += ['--out', work / 'labels']
        if key:
            arguments += ['--cfg-options', *(f'{option}={key}' for option in key_options(cfg))]
        words = f'testing with {"the right key" if who == RIGHT else f"key {key}"}'
        return self._step(f'test-{who}', words, arguments, partial(self._tested, who, work), fresh=work)

    def _tested(self, who: str, work: Path) -> None:
        found = sorted(work.glob('*/*.json'))
        miou = json.loads(found[-1].read_text(encoding='utf-8')).get('mIoU') if found else None
        if not isinstance(miou, (int, float)) or not math.isfinite(miou):
            raise KeysegError(f'the test gave no mIoU ({work}): its evaluator has to be IoUMetric')
        self.row.pictures[who] = segmented(work / 'labels', self.subject.data)
        shutil.rmtree(work / 'labels', ignore_errors=True)  # as many as there are test photos
        self.row.miou[who] = float(miou)
        order = list(self.testers)
        self.row.miou = dict(sorted(self.row.miou.items(), key=lambda item: order.index(item[0])))

    def _audited(self, report: Path) -> None:
        summary = json.loads(report.read_text(encoding='utf-8'))['summary']
        found = summary['headline']
        best = {name: found[name]['about']['title'] for name in ('attack', 'control')}
        reached = {f'{name}_miou': found[name]['score']['miou'] for name in best}
        self.row.audit = Audited('', found['advantage'], summary['level'], found['photos'], **best, **reached)

    def timing(self) -> list[Step]:
        """Time the model beside the plain one."""
        plain, out = self.subject.trials[0], self.folder / 'overhead.json'
        if self.method.name == PLAIN or not plain.row.checkpoint or self.row.overhead is not None:
            return []

        def timed() -> None:
            self.row.overhead = Timed(**json.loads(out.read_text(encoding='utf-8')))

        files = [self.config, self.checkpoint, self.subject.base, plain.checkpoint, out]
        return [self._step('overhead', 'timing', files, timed, module=_MEASURE)]

    def _step(self, name: str, words: str, arguments: Sequence[object], read: Callable[[], None], **how: Any) -> Step:
        module = how.pop('module', self.choices.commands)
        command = Command(module, tuple(map(str, arguments)), self.folder / f'{name}.log', **how)
        return Step(self, words, command, read)

    def end(self, step: Step, ended: Ended) -> None:
        """Take over what a step that was run came to, and keep it."""
        if ended.refused and step.command.arguments[0] == 'audit':
            self.row.audit = Audited(ended.why)
        elif ended.why:
            self.row.fail(ended.why)
        else:
            try:
                step.read()
            except Exception as error:  # whatever a tool left behind, the other methods go on
                self.row.fail(str(error) if isinstance(error, KeysegError) else f'{type(error).__name__}: {error}')
        self.row.keep(self.folder)


def compare(subjects: Sequence[Subject], methods: Sequence[Method], executor: Executor, progress: Progress) -> None:
    """Apply the methods to the configs; the figures are in the subjects then.

    Args:
        subjects: the configs.
        methods: the plain model first.
        executor: runs the steps; timings are run alone at the end, and here, since they mean nothing under load.
        progress: told what is going on.
    """
    init_default_scope('mmseg')
    count, number = len(subjects) * len(methods), 0
    for subject in subjects:
        where = f' on {subject.folder.name}' if len(subjects) > 1 else ''
        for method in methods:
            number += 1
            subject.trials.append(Trial(subject, method, f'{number}/{count} {method.title}{where}'))
            subject.trials[-1].prepare()
    trials = [trial for subject in subjects for trial in subject.trials]
    with make_executor() as alone:
        for doing, steps_of, by in (
            ('training', Trial.training, executor),
            ('locking', Trial.locking, executor),
            ('testing and auditing', Trial.judging, executor),
            ('timing', Trial.timing, alone),
        ):
            _run(doing, [step for t in trials if t.row.status == DONE for step in steps_of(t)], by, progress)
    for trial in trials:
        if trial.row.why:
            progress.say(f'{trial.title}: {trial.row.status}: {trial.row.why}')


def _run(doing: str, steps: Sequence[Step], executor: Executor, progress: Progress) -> None:
    def done(index: int, ended: Ended | Failed) -> None:
        step = steps[index]
        step.trial.end(step, Ended(ended.why) if isinstance(ended, Failed) else ended)
        progress.step()
        progress.say(f'{step.trial.title}: {step.words}')

    progress.begin(len(steps), doing)
    commands = [step.command for step in steps]
    with watched([command.log for command in commands], progress.detail):
        executor.run(perform, commands, done)
