"""A whole audit: what is asked for, what is set up from it, all its runs, one by one or side by side, a report."""

from __future__ import annotations

import abc
import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keyseg_mm.audit.engine.attack import Say
from keyseg_mm.audit.engine.executor import Executor, Failed
from keyseg_mm.audit.engine.runner import Failure, Outcome, Run, Runner
from keyseg_mm.audit.report.page import write_report
from keyseg_mm.keys.identity import Key
from keyseg_mm.keys.locator import locate_real


@dataclass(frozen=True)
class Stage:
    """Everything read, checked and set up for an audit.

    Attributes:
        runner: does the runs.
        runs: all of them, controls first: an interrupted audit then has something to compare with.
        report: gives what was audited, without results: all public; takes what all reports have in common.
        summarise: gives what a report comes to, a ``Summary``.
    """

    runner: Runner
    runs: Sequence[Run[Any, Any]]
    report: Callable[..., Any]
    summarise: Callable[[Any], Any]


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
    report = report_of(order, stage)
    if not report.positive.passed:
        say('WARNING: the true key does not score full marks in the way guesses are scored: do not trust this audit')
    outcomes = tuple(_run_all(order, stage, executor, say))
    report = dataclasses.replace(report, outcomes=outcomes, seconds=round(time.monotonic() - start, 1))
    summary = stage.summarise(report)
    write_report(order.out, report, summary)
    return report, summary


def report_of(order: Order, stage: Stage) -> Any:
    """What was audited and how the referee's checks came out, without results."""
    referee = stage.runner.judge
    return stage.report(
        suite=order.suite,
        seed=order.seed,
        config=order.config.name,
        checkpoint=order.checkpoint.name if order.checkpoint else None,
        positive=referee.positive_control(),
        negative=referee.negative_control(order.seed),
    )


@dataclass(frozen=True)
class Job:
    """One run, for whoever is to do it."""

    order: Order
    run: str


def perform(job: Job) -> Outcome:
    """Do a job, in whatever process this is; what its order asks for is set up there once."""
    stage = _set_up(job.order)
    return stage.runner.attempt(next(run for run in stage.runs if run.name == job.run))


@functools.lru_cache(maxsize=1)
def _set_up(order: Order) -> Stage:
    return order.stage(locate_real(order.key, '--key'), lambda text: None)


def _run_all(order: Order, stage: Stage, executor: Executor | None, say: Say) -> list[Outcome]:
    """What comes of all runs of an audit, in their order; what is finished is taken over."""
    runner, runs = stage.runner, stage.runs
    found: dict[str, Outcome] = {run.name: kept for run in runs if (kept := runner.kept(run))}
    left = [run for run in runs if run.name not in found]

    def store(index: int, outcome: Outcome | Failed) -> None:
        run = left[index]
        if isinstance(outcome, Failed):
            outcome = Failure(run.about(), runner.digest(run), 0.0, outcome.why)
        found[run.name] = runner.keep(run, outcome)
        say(f'{len(found)}/{len(runs)}  {run.kind}: {run.title}')

    if executor is not None and left:
        locate_real(order.key, '--key')  # an error now, and not in every process
        there = _portable(order)
        executor.run(perform, [Job(there, run.name) for run in left], store)
    else:
        for index, run in enumerate(left):
            store(index, runner.attempt(run))
    return [found[run.name] for run in runs]


def _portable(order: Order) -> Order:
    """The same order where other folders are current, and other processes show bars."""
    values = {item.name: getattr(order, item.name) for item in dataclasses.fields(order)}
    paths: Any = {name: value.resolve() for name, value in values.items() if isinstance(value, Path)}
    scheme, _, rest = order.key.partition(':')
    key = f'file:{Path(rest).expanduser().resolve()}' if scheme == 'file' else order.key
    return dataclasses.replace(order, bars=False, key=key, **paths)
