"""Independent runs: one after another in this process, side by side in local processes, or on a Dask cluster.

A run is a module-level function and one job, a small picklable description. Keys never travel in a job: it names them
by locator, and whoever runs it follows the locator. On a cluster every worker needs this package and the same folders.
"""

from __future__ import annotations

import abc
import contextlib
import os
import pickle
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from traceback import extract_tb
from typing import Any, TypeVar

from keyseg_mm.errors import KeysegError

J = TypeVar('J')
R = TypeVar('R')
_Results = Generator[tuple[int, Any], None, None]

_TRIES = 2  # of a job whose local process died
_PATIENCE = 10.0  # seconds that a cluster has to answer, and a process to end what it has started
_ALONE = threading.Lock()  # jobs seed the generators of their process, so only one at a time may run in it


@dataclass(frozen=True)
class Failed:
    """In place of the result of a job that has none; ``why`` is a line: its error, or the death of its process."""

    why: str


class Executor(contextlib.AbstractContextManager['Executor']):
    """Runs independent jobs. Leaving it ends all that it started."""

    def run(self, function: Callable[[J], R], jobs: Sequence[J], done: Callable[[int, R | Failed], object]) -> None:
        """Run a function on each job; returns when all are done.

        Args:
            function: of a module, so that another process finds it by its name.
            jobs: what it is called with, one at a time.
            done: called in this process with a job's number and its result, as soon as there is one, in whatever order
                the jobs finish. An error that the function raises is a result too, a :class:`Failed`.

        Raises:
            SecretExposedError: a job holds a key.
        """
        pickle.dumps((function, list(jobs)))  # also where nothing travels: the same jobs run in every way
        with contextlib.closing(self._results(function, jobs)) as results:
            for index, result in results:
                done(index, result)

    def __exit__(self, *_: object) -> None:
        return None

    @abc.abstractmethod
    def _results(self, function: Callable[[Any], Any], jobs: Sequence[Any]) -> _Results:
        """Number and result of each job, as it finishes."""


def make_executor(jobs: int = 1, scheduler: str | None = None) -> Executor:
    """The way to run that a user asks for.

    Args:
        jobs: how many run side by side in local processes; 1: one after another, in this process.
        scheduler: address of a Dask scheduler whose workers run them, such as ``tcp://10.0.0.1:8786``.

    Raises:
        KeysegError: both are given, Dask is not installed, or no scheduler answers.
    """
    if scheduler is None:
        return _Local(jobs) if jobs > 1 else _Sequential()
    if jobs > 1:
        raise KeysegError('give --jobs for processes on this machine, or --scheduler for a cluster, not both')
    return _Dask(scheduler)


def _attempt(function: Callable[[J], R], job: J) -> R | Failed:
    """The function's result; an error that it raises becomes one."""
    try:
        with _ALONE:
            return function(job)
    except Exception as error:  # whatever it is, the other jobs are still worth running
        where = extract_tb(error.__traceback__)[-1]
        return Failed(f'{type(error).__name__}: {error} ({Path(where.filename).name}, line {where.lineno})')


class _Sequential(Executor):
    def _results(self, function: Callable[[Any], Any], jobs: Sequence[Any]) -> _Results:
        for index, job in enumerate(jobs):
            yield index, _attempt(function, job)


class _Local(Executor):
    """Local processes, each a pool of its own: one that dies breaks no other, and its job is tried once more."""

    def __init__(self, jobs: int) -> None:
        self._jobs = jobs
        self._context = get_context('spawn')  # the fork of a process with torch's threads in it may hang
        self._their_end, self._lifeline = self._context.Pipe(duplex=False)
        self._idle: list[ProcessPoolExecutor] = []
        self._pools: list[ProcessPoolExecutor] = []

    def __exit__(self, *_: object) -> None:
        for pool in self._idle:
            pool.shutdown()
        self._lifeline.close()  # the others are at something still
        for pool in self._pools:
            pool.shutdown(cancel_futures=True)
        self._their_end.close()

    def _results(self, function: Callable[[Any], Any], jobs: Sequence[Any]) -> _Results:
        waiting, tries = deque(range(len(jobs))), [0] * len(jobs)
        busy: dict[Future[Any], tuple[int, ProcessPoolExecutor]] = {}
        while waiting or busy:
            while waiting and len(busy) < self._jobs:
                index = waiting.popleft()
                tries[index] += 1
                future, pool = self._submit(function, jobs[index])
                busy[future] = index, pool
            for future in wait(busy, return_when=FIRST_COMPLETED).done:
                index, pool = busy.pop(future)
                error = future.exception()
                if error is None:
                    self._idle.append(pool)
                    yield index, future.result()
                elif tries[index] < _TRIES:
                    waiting.appendleft(index)
                else:
                    yield index, Failed(f'{type(error).__name__}, {_TRIES} times: {error}')

    def _submit(self, function: Callable[[Any], Any], job: Any) -> tuple[Future[Any], ProcessPoolExecutor]:
        # the mask is inherited: also while a process starts, Ctrl-C is the caller's business
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            while self._idle:
                pool = self._idle.pop()
                with contextlib.suppress(BrokenProcessPool):  # it died with nothing to do
                    return pool.submit(_attempt_there, function, job), pool
            threads = max(1, (os.cpu_count() or 1) // self._jobs)
            self._pools.append(ProcessPoolExecutor(1, self._context, _prepare, (self._their_end, threads)))
            return self._pools[-1].submit(_attempt_there, function, job), self._pools[-1]
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _attempt_there(function: Callable[[J], R], job: J) -> R | Failed:
    try:
        return _attempt(function, job)
    except SystemExit:  # told to end, and not by its job, as the pool would think
        os._exit(1)


def _prepare(lifeline: Any, threads: int) -> None:
    """Set up a local process: it takes its share of the cores, and ends when the caller lets go or dies."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that `finally` ends what a job has started
    signal.signal(signal.SIGINT, lambda *_: None)  # not ignored, which the processes of a job would inherit
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    os.environ.setdefault('OMP_NUM_THREADS', str(threads))  # for the processes of a job, and for a later torch
    if 'torch' in sys.modules:
        sys.modules['torch'].set_num_threads(int(os.environ['OMP_NUM_THREADS']))

    def watch() -> None:
        with contextlib.suppress(EOFError, OSError):
            lifeline.recv()  # nothing is ever sent
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_PATIENCE)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class _Dask(Executor):
    """The workers of a Dask cluster. A job whose worker dies is run by another one; Dask gives up after four."""

    def __init__(self, scheduler: str) -> None:
        try:
            from distributed import Client
        except ImportError:
            raise KeysegError("--scheduler needs Dask, which is not installed: pip install 'keyseg-mm[dask]'") from None
        try:
            self._client = Client(scheduler, timeout=_PATIENCE, set_as_default=False)
        except Exception as error:  # an address that means nothing raises what it likes
            raise KeysegError(f'--scheduler {scheduler}: no Dask scheduler answers there ({error})') from None

    def __exit__(self, *_: object) -> None:
        self._client.close(timeout=_PATIENCE)

    def _results(self, function: Callable[[Any], Any], jobs: Sequence[Any]) -> _Results:
        suspects = []
        for index, result in self._finished(function, jobs, range(len(jobs))):
            if isinstance(result, _Lost):  # its workers died, maybe by other jobs that they were at
                suspects.append(index)
            else:
                yield index, result
        for index in suspects:
            yield from self._finished(function, jobs, [index])  # now it runs alone

    def _finished(self, function: Callable[[Any], Any], jobs: Sequence[Any], indices: Iterable[int]) -> _Results:
        from distributed import as_completed

        numbers = {self._client.submit(_attempt, function, jobs[i], pure=False): i for i in indices}
        for future in as_completed(list(numbers), loop=self._client.loop):
            try:
                result = future.result()
            except CancelledError:
                raise KeysegError('the connection to the Dask scheduler was lost') from None
            except Exception as error:  # not the job's own: those are results
                result = _Lost(f'{type(error).__name__}: {error}')
            yield numbers[future], result


class _Lost(Failed):
    """The workers died that ran it."""
