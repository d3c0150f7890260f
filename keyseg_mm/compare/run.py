"""The course of a comparison: models are made, tested, attacked, and timed at the end; what is known is not redone."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from pathlib import Path

from mmengine.registry import init_default_scope

from keyseg_mm.audit.engine.executor import Executor, Failed, make_executor
from keyseg_mm.audit.engine.suites import Say
from keyseg_mm.compare.choices import Choices, begin
from keyseg_mm.compare.configs import read_plain
from keyseg_mm.compare.data import TestData
from keyseg_mm.compare.methods import Method
from keyseg_mm.compare.rows import DONE, Audited
from keyseg_mm.compare.steps import Ended, Step, perform
from keyseg_mm.compare.trial import Subject, Trial
from keyseg_mm.errors import KeysegError

_MAKING = ('train', 'lock')  # steps that make a model


def take_up(out: Path, choices: Choices, methods: Sequence[Method], commands: str) -> list[Subject]:
    """Begin a comparison in a folder, or go on with the one that is there.

    Args:
        out: the folder.
        choices: what its results depend on.
        methods: the plain model first.
        commands: the module whose ``main`` runs the commands of ``keyseg``.

    Raises:
        KeysegError: the folder holds something else, or the configs are no plain ones that can be read.
    """
    cfgs = [read_plain(Path(config), choices.cfg_options) for config in choices.configs]
    begin(out, choices, [hashlib.sha256(cfg.pretty_text.encode()).hexdigest() for cfg in cfgs])
    subjects: list[Subject] = []
    for path, cfg in zip(map(Path, choices.configs), cfgs):
        same = sum(subject.file == path.name for subject in subjects)
        folder = out.resolve() / (f'{path.stem}-{same + 1}' if same else path.stem)
        cfg.merge_from_dict({'randomness.seed': choices.seed})
        given = None if subjects else choices.plain
        subjects.append(Subject(cfg, path.name, folder, TestData.read(cfg), choices, given, commands))
        for method in methods:
            plain = next(iter(subjects[-1].trials), None)
            subjects[-1].trials.append(Trial(subjects[-1], method, plain))
    return subjects


def compare(subjects: Sequence[Subject], executor: Executor, say: Say) -> None:
    """Apply the methods to the configs; what is found is in the subjects' rows then.

    Args:
        subjects: the configs.
        executor: runs the steps; timings are run alone at the end, and here, since they mean nothing under load.
        say: told what is done.
    """
    init_default_scope('mmseg')
    trials = [trial for subject in subjects for trial in subject.trials]
    for trial in trials:
        trial.prepare()
    with make_executor() as alone:
        for steps_of in (Trial.training, Trial.locking, Trial.judging, Trial.timing):
            steps = [(trial, step) for trial in trials if trial.row.status == DONE for step in steps_of(trial)]
            new = [(trial, step) for trial, step in steps if not _is_known(trial, step)]
            _run(new, alone if steps_of == Trial.timing else executor, say)
    for trial in trials:
        if trial.row.why:
            say(f'{trial.title}: {trial.row.status}: {trial.row.why}')


def _is_known(trial: Trial, step: Step) -> bool:
    """Take over the result of an earlier run, if there is a sound one."""
    try:
        if step.mark.exists():
            trial.read(step)
            return True
    except Exception:  # whatever became of its files, it is run again
        step.mark.unlink()
    return False


def _run(steps: Sequence[tuple[Trial, Step]], executor: Executor, say: Say) -> None:
    count = itertools.count(1)

    def done(index: int, ended: Ended | Failed) -> None:
        trial, step = steps[index]
        _end(trial, step, Ended(ended.why) if isinstance(ended, Failed) else ended)
        say(f'{next(count)}/{len(steps)} {trial.title}: {step.words}')

    executor.run(perform, [step for _, step in steps], done)


def _end(trial: Trial, step: Step, ended: Ended) -> None:
    """Take over what a step that was run came to, and mark it as done."""
    if ended.why:
        if ended.refused and step.name == 'audit':
            trial.row.audit = Audited(ended.why)
        else:
            trial.row.fail(ended.why)
        return
    try:
        trial.read(step)
    except Exception as error:  # whatever a tool left behind, the other methods go on
        trial.row.fail(str(error) if isinstance(error, KeysegError) else f'{type(error).__name__}: {error}')
        return
    if step.name in _MAKING:  # what was found of another model, or was made of it, is done again
        for other in trial.subject.trials:
            if other is trial or (trial.plain is None and other.method.lock):
                for mark in other.folder.glob('*.done'):
                    mark.unlink()
    step.mark.touch()
