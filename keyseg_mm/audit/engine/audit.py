"""A whole audit: what is asked for, what is set up from it, all its runs, one by one or side by side, a report."""

from __future__ import annotations

import abc
import dataclasses
import functools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from keyseg_mm.audit.engine.attack import Run
from keyseg_mm.audit.engine.executor import Executor, Failed
from keyseg_mm.audit.engine.results import Failure, Result
from keyseg_mm.audit.engine.runner import Runner
from keyseg_mm.audit.engine.suites import Say
from keyseg_mm.audit.report.page import write_report
from keyseg_mm.keys.identity import Key
from keyseg_mm.keys.locator import locate_real

Outcome = Result[Any] | Failure
#: Runs, each with what runs it.
Planned = Sequence[tuple[Runner, Run[Any, Any]]]


@dataclass(frozen=True, kw_only=True)
class Order(abc.ABC):
    """What is to be audited, and how. It holds no key, so it can go to another process."""

    config: Path
    key: str  # locator of the key, which only the referee gets
    out: Path  # folder for results and report
    checkpoint: Path | None = None  # the protected one
    suite: str = 'standard'
    seed: int = 0  # of everything drawn
    bars: bool = True  # show progress bars

    @abc.abstractmethod
    def stage(self, key: Key, say: Say) -> Stage:
        """Read, check and set up all that the order asks for.

        Raises:
            KeysegError: config, checkpoints, key and photos do not belong together.
        """


class Stage(abc.ABC):
    """Everything read, checked and set up for an audit."""

    summarise: ClassVar[Any]  # gives what a report comes to, a Summary

    @property
    @abc.abstractmethod
    def planned(self) -> Planned:
        """All runs, controls first: an interrupted audit then has something to compare with."""

    @abc.abstractmethod
    def report(self) -> Any:
        """What was audited and how the referee's checks came out, without results: all public."""


def audit(
    order: Order, key: Key | None = None, executor: Executor | None = None, say: Say = lambda text: None
) -> tuple[Any, Any]:
    """Run an audit and write ``report.json`` and ``report.html``.

    Args:
        order: what and how.
        key: the true key, where its locator was followed already.
        executor: runs attacks side by side; None: one after another, in this process.
        say: told what is going on, a line at a time.

    Returns:
        The report, as it is written, and its summary.

    Raises:
        KeysegError: as of :meth:`Order.stage`; before anything long begins.
    """
    start = time.monotonic()
    stage = order.stage(key or locate_real(order.key, 'key'), say)
    say('the referee checks itself')
    report = stage.report()
    if not report.positive.passed:
        say('WARNING: the true key does not score full marks in the way guesses are scored: do not trust this audit')
    outcomes = tuple(run_all(order, stage.planned, executor, say))
    report = dataclasses.replace(report, outcomes=outcomes, seconds=round(time.monotonic() - start, 1))
    summary = stage.summarise(report)
    write_report(order.out, report, summary)
    return report, summary


@dataclass(frozen=True)
class Job:
    """One run, for whoever is to do it."""

    order: Order
    run: str


def perform(job: Job) -> Outcome:
    """Do a job, in whatever process this is; what its order asks for is set up there once."""
    runner, run = _set_up(job.order)[job.run]
    return runner.attempt(run)


@functools.lru_cache(maxsize=1)
def _set_up(order: Order) -> Mapping[str, tuple[Runner, Run[Any, Any]]]:
    stage = order.stage(_key_of(order), lambda text: None)
    return {run.name: (runner, run) for runner, run in stage.planned}


def run_all(order: Order, planned: Planned, executor: Executor | None, say: Say) -> list[Outcome]:
    """All runs of an audit, taking over what is finished.

    Args:
        order: what was asked for.
        planned: what was set up from it.
        executor: what runs jobs side by side; None: one after another, in this process.
        say: told what is going on, a line at a time.

    Returns:
        What came of each, in the order of ``planned``.
    """
    found: dict[int, Outcome] = {i: kept for i, (runner, run) in enumerate(planned) if (kept := runner.kept(run))}
    left = [number for number in range(len(planned)) if number not in found]

    def store(index: int, outcome: Outcome | Failed) -> None:
        runner, run = planned[left[index]]
        if isinstance(outcome, Failed):
            outcome = Failure(run.about(), runner.digest(run), 0.0, outcome.why)
        found[left[index]] = runner.keep(run, outcome)
        say(f'{len(found)}/{len(planned)}  {run.kind}: {run.title}')

    if executor is not None and left:
        _key_of(order)  # an error now, and not in every process
        there = _portable(order)
        executor.run(perform, [Job(there, planned[number][1].name) for number in left], store)
    else:
        for index, number in enumerate(left):
            store(index, planned[number][0].attempt(planned[number][1]))
    return [found[number] for number in range(len(planned))]


def _key_of(order: Order) -> Key:
    return locate_real(order.key, '--key')


def _portable(order: Order) -> Order:
    """The same order where other folders are current, and other processes show bars."""
    values = {item.name: getattr(order, item.name) for item in dataclasses.fields(order)}
    paths: Any = {name: value.resolve() for name, value in values.items() if isinstance(value, Path)}
    scheme, _, rest = order.key.partition(':')
    key = f'file:{Path(rest).expanduser().resolve()}' if scheme == 'file' else order.key
    return dataclasses.replace(order, bars=False, key=key, **paths)
