"""The runs of a comparison: each method made, tested with and without its key, timed and attacked, step by step."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from keyseg_mm.checkpoint.files import read_checkpoint, stamps_in
from keyseg_mm.compare import process
from keyseg_mm.compare.applicable import check_applicable
from keyseg_mm.compare.choices import NONE, RIGHT, Choices, Progress
from keyseg_mm.compare.configs import key_options, read, write_heir
from keyseg_mm.compare.folder import Marks
from keyseg_mm.compare.methods import PLAIN, Method
from keyseg_mm.compare.photos import look_at, segmented
from keyseg_mm.compare.process import COMMANDS, MEASURE, StepError
from keyseg_mm.errors import KeysegError
from keyseg_mm.locking.scheme import key_space

DONE, NOT_APPLICABLE, FAILED = 'done', 'not applicable', 'failed'
UNCOUNTABLE = 'uncountable'
_AUDITED = (0, 4)  # exit statuses of `keyseg audit` with a result


class Subject:
    """One config of a comparison, and the methods applied to it.

    Args:
        config: the user's plain config.
        folder: for all that is made of it.
        choices: see :class:`Choices`.
        progress: told what is going on.
        given: a trained plain checkpoint, if there is one.
    """

    def __init__(
        self, config: Path, folder: Path, choices: Choices, progress: Progress, given: Path | None = None
    ) -> None:
        self.config, self.folder, self.choices, self.progress = config, folder, choices, progress
        self.given = given
        self._left = 0  # steps of the row under way
        self.base = folder / 'base.py'
        cfg = read(config, choices.options)
        cfg.merge_from_dict({'randomness': {**(cfg.get('randomness') or {}), 'seed': choices.seed}})
        write_heir(self.base, config, cfg)
        self.facts = self._facts()

    def _facts(self) -> dict[str, Any]:
        marks = Marks(self.folder)
        facts = marks.get('data')
        if facts is None:
            self.progress.say(f'{self.folder.name}: reading the labels of the test photos')
            facts = look_at(read(self.base))
            marks.set('data', facts)
        return facts

    def row(self, method: Method) -> dict[str, Any]:
        """All figures of a method; errors end it and not the others, and stand in the row."""
        row: dict[str, Any] = {'name': method.name, 'title': method.title, 'status': DONE, 'why': '', 'miou': {}}
        self._left = self.choices.steps(method)
        try:
            if why := self._why_not(method):
                row.update(status=NOT_APPLICABLE, why=why)
            else:
                self._fill(row, method, Marks(self.folder / method.name))
        except (StepError, KeysegError) as error:
            row.update(status=FAILED, why=str(error))
        except Exception as error:  # whatever it is, the other methods go on
            row.update(status=FAILED, why=f'{type(error).__name__}: {error}')
        if row['why']:
            self.progress.say(f'{self.progress.where}: {row["status"]}: {row["why"]}')
        self.progress.step(self._left)
        return row

    def _fill(self, row: dict[str, Any], method: Method, marks: Marks) -> None:
        checkpoint = self._make(method, marks)
        for who in [RIGHT] if method.name == PLAIN else self.choices.testers:
            row['miou'][who] = self._test(method, who, checkpoint, marks)['miou']
        if method.name != PLAIN:
            stamps = stamps_in(checkpoint)
            bits = sum(map(key_space, stamps.values())) if stamps else None
            row['key_space'] = UNCOUNTABLE if bits is not None and math.isinf(bits) else bits
            row['overhead'] = self._measure(method, checkpoint, marks)
            row['audit'] = self._audit(method, checkpoint, marks)

    def _step(self) -> None:
        self._left -= 1
        self.progress.step(1)

    def pictures(self, method: Method) -> dict[str, list[str]]:
        """What the right key and no key made of the shown photos, as far as it was kept."""
        marks = Marks(self.folder / method.name)
        found = {who: (marks.get(f'test-{who}') or {}).get('pictures', []) for who in (RIGHT, NONE)}
        return {who: images for who, images in found.items() if images}

    def _why_not(self, method: Method) -> str:
        """Why a method cannot be applied; where it can, nothing, and its config is written."""
        cfg = read(self.base)
        try:
            method.alter(cfg, self.choices.key)
            if Marks(self.folder / method.name).get('make') is None:
                check_applicable(method, read(self.base), cfg)
        except KeysegError as error:
            return str(error)
        write_heir(self.folder / method.name / 'config.py', self.base, cfg)  # no more than the options say
        return ''

    def _make(self, method: Method, marks: Marks) -> Path:
        """Train the method's model, or lock the plain one; returns the checkpoint."""
        folder = self.folder / method.name
        done = marks.get('make')
        if done is None:
            self._forget(method)
            if method.name == PLAIN and self.given is not None:
                path = self.given.resolve()
            else:
                path = self._train(folder) if method.is_trained else self._lock(method, folder)
            _check_finite(path)
            inside = path.is_relative_to(folder.resolve())
            done = {'checkpoint': str(path.relative_to(folder.resolve()) if inside else path)}
            marks.set('make', done)
        self._step()
        found: Path = folder.resolve() / done['checkpoint']
        if not found.is_file():
            raise StepError(f'{found} is gone; remove {marks.folder} to make it again')
        return found

    def _forget(self, method: Method) -> None:
        """Figures of another checkpoint must not stand beside a new one's: they go, and so do those of its copies."""
        copies = [path.parent for path in self.folder.glob('*/locked.pth')] if method.name == PLAIN else []
        for folder in [self.folder / method.name, *copies]:
            Marks(folder).clear()
            shutil.rmtree(folder / 'audit', ignore_errors=True)

    def _train(self, folder: Path) -> Path:
        work = folder / 'train'
        last = work / 'last_checkpoint'
        self.progress.begin('training')
        arguments = ['train', folder / 'config.py', '--work-dir', work, *(['--resume'] if last.exists() else [])]
        self._run(COMMANDS, arguments, folder / 'train.log')
        if not last.exists():
            raise StepError('the training saved no checkpoint: give its config a CheckpointHook that does')
        return Path(last.read_text(encoding='utf-8').strip()).resolve()

    def _lock(self, method: Method, folder: Path) -> Path:
        plain = self._plain()
        self.progress.begin('locking the plain checkpoint')
        command, *how = method.lock
        out = folder / 'locked.pth'
        arguments = [command, self.base, plain, '--key', self.choices.key, '--out', out, '--overwrite', *how]
        self._run(COMMANDS, arguments, folder / 'lock.log')
        return out.resolve()

    def _plain(self) -> Path:
        done = Marks(self.folder / PLAIN).get('make')
        if done is None:
            raise StepError('there is no plain checkpoint to lock: the plain training failed')
        found: Path = self.folder.resolve() / PLAIN / done['checkpoint']
        return found

    def _test(self, method: Method, who: str, checkpoint: Path, marks: Marks) -> dict[str, Any]:
        """Test by the host's test tool; the label maps of the shown photos are kept."""
        done = marks.get(f'test-{who}')
        if done is None:
            folder = self.folder / method.name
            work, out = folder / f'test-{who}', folder / f'test-{who}' / 'labels'
            shutil.rmtree(work, ignore_errors=True)
            key = self.choices.testers[who]
            self.progress.begin(f'testing with {"the right key" if who == RIGHT else f"key {key}"}')
            cfg = read(folder / 'config.py')
            arguments: list[object] = ['test', folder / 'config.py', checkpoint, '--work-dir', work]
            if who in (RIGHT, NONE) and isinstance(cfg.get('test_evaluator'), dict):
                arguments += ['--out', out]
            if method.name != PLAIN:
                arguments += ['--cfg-options', *(f'{option}={key}' for option in key_options(cfg))]
            self._run(COMMANDS, arguments, folder / f'test-{who}.log')
            done = {'miou': _miou_in(work), 'pictures': segmented(out, self.facts)}
            shutil.rmtree(out, ignore_errors=True)  # as many as there are test photos
            marks.set(f'test-{who}', done)
        self._step()
        return done

    def _measure(self, method: Method, checkpoint: Path, marks: Marks) -> dict[str, Any]:
        done = marks.get('overhead')
        if done is None:
            folder = self.folder / method.name
            self.progress.begin('timing')
            out = folder / 'overhead.json'
            files = ['--config', folder / 'config.py', '--checkpoint', checkpoint, '--out', out]
            plain = ['--plain-config', self.base, '--plain', self._plain()]
            self._run(MEASURE, [*files, *plain, '--timed', method.timed], folder / 'overhead.log')
            done = json.loads(out.read_text(encoding='utf-8'))
            marks.set('overhead', done)
        self._step()
        return done

    def _audit(self, method: Method, checkpoint: Path, marks: Marks) -> dict[str, Any] | None:
        """The audit's headline; what the audit refuses is told as its reason, and is no failure of the method."""
        if self.choices.suite == 'none':
            return None
        done = marks.get('audit')
        if done is None:
            folder = self.folder / method.name
            self.progress.begin(f'audit, suite {self.choices.suite}')
            given = ['--key', self.choices.key, '--suite', self.choices.suite, '--seed', self.choices.seed]
            arguments = ['audit', folder / 'config.py', checkpoint, '--out', folder / 'audit', *given]
            try:
                self._run(COMMANDS, arguments, folder / 'audit.log', _AUDITED)
            except StepError as error:
                if not error.refused:
                    raise
                done = {'why': str(error)}  # without a mark: a later release may take it
            else:
                report = json.loads((folder / 'audit' / 'report.json').read_text(encoding='utf-8'))
                done = headline(report['summary'])
                marks.set('audit', done)
        self._step()
        return done

    def _run(self, module: str, arguments: list[Any], log: Path, fine: tuple[int, ...] = (0,)) -> None:
        if process.run_step(module, arguments, log, self.progress.detail) not in fine:
            reason = process.reason_in(log)
            raise StepError(f'{reason} ({log})' if not reason.refused else str(reason), reason.refused)


def headline(summary: Mapping[str, Any]) -> dict[str, Any]:
    """What a comparison tells of an audit."""
    found = summary['headline']
    parts = {kind: {name: found[kind][name] for name in ('title', 'miou')} for kind in ('attack', 'control')}
    return {'advantage': found['advantage'], 'photos': found['photos'], 'level': summary['level'], **parts}


def _miou_in(work: Path) -> float:
    """mIoU, in percent, that a test wrote."""
    found = sorted(work.glob('*/*.json'))
    metrics = json.loads(found[-1].read_text(encoding='utf-8')) if found else {}
    miou = metrics.get('mIoU')
    if not isinstance(miou, (int, float)) or not math.isfinite(miou):
        raise StepError(f'the test gave no mIoU ({work}): its evaluator has to be IoUMetric')
    return float(miou)


def _check_finite(checkpoint: Path) -> None:
    """Refuse weights that are no numbers any more."""
    for name, value in read_checkpoint(checkpoint)['state_dict'].items():
        if isinstance(value, torch.Tensor) and value.is_floating_point() and not torch.isfinite(value).all():
            raise StepError(f'the training diverged: {name} has values that are no numbers')
