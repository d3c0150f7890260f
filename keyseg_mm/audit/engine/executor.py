"""Independent runs: one after another in this process, side by side in local processes, or on a Dask cluster.

A run is a module-level function and one job, a small picklable description. Keys never travel in a job: it names them
by locator, and whoever runs it follows the locator. On a cluster every worker needs this package and the same folders.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from traceback import extract_tb
from typing import Any, TypeVar

from keyseg_mm.errors import KeysegError

J = TypeVar('J')
R = TypeVar('R')
_Function = Callable[[Any], Any]
_Results = Generator[tuple[int, Any], None, None]

_SPAWN = multiprocessing.get_context('spawn')  # the fork of a process with torch's threads in it may hang
_TRIES = 2  # of a job whose local process died
_PATIENCE = 10.0  # seconds that a cluster has to answer, and a process to end what it has started
_ALONE = threading.Lock()  # jobs seed the generators of their process, so only one at a time may run in it


@dataclass(frozen=True)
class Failed:
    """In place of the result of a job that has none; ``why`` is a line: its error, or the death of its process."""

    why: str


class Executor(contextlib.AbstractContextManager['Executor']):
    """Runs independent jobs, here one after another. Leaving it ends all that it started."""

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

    def _results(self, function: _Function, jobs: Sequence[Any]) -> _Results:
        """Number and result of each job, as it finishes."""
        for index, job in enumerate(jobs):
            yield index, _attempt(function, job)


def make_executor(jobs: int = 1, scheduler: str | None = None) -> Executor:
    """The way to run that a user asks for.

    Args:
        jobs: how many run side by side in local processes; 1: one after another, in this process.
        scheduler: address of a Dask scheduler whose workers run them, such as ``tcp://10.0.0.1:8786``.

    Raises:
        KeysegError: both are given, Dask is not installed, or no scheduler answers.
    """
    if scheduler is None:
        return _Local(jobs) if jobs > 1 else Executor()
    if jobs > 1:
        raise KeysegError('give --jobs for processes on this machine, or --scheduler for a cluster, not both')
    return _Dask(scheduler)


def _attempt(function: _Function, job: Any) -> Any:
    """The function's result; an error that it raises becomes one."""
    try:
        with _ALONE:
            return function(job)
    except Exception as error:  # whatever it is, the other jobs are still worth running
        where = extract_tb(error.__traceback__)[-1]
        return Failed(f'{type(error).__name__}: {error} ({Path(where.filename).name}, line {where.lineno})')


class _Local(Executor):
    """Local processes, each at the end of a pipe. One that dies breaks no other, and its job is tried once more."""

    def __init__(self, jobs: int) -> None:
        self._jobs = jobs
        self._processes: list[SpawnProcess] = []
        self._idle: list[Connection] = []

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.join(_PATIENCE)
            process.kill()

    def _results(self, function: _Function, jobs: Sequence[Any]) -> _Results:
        waiting, tries = deque(range(len(jobs))), [0] * len(jobs)
        busy: dict[Any, int] = {}
        while waiting or busy:
            while waiting and len(busy) < self._jobs:
                index = waiting.popleft()
                tries[index] += 1
                pipe: Any = self._idle.pop() if self._idle else self._start()
                busy[pipe] = index
                with contextlib.suppress(OSError):  # it died with nothing to do, as is seen at once
                    pipe.send((function, jobs[index]))
            for pipe in wait(list(busy)):
                index = busy.pop(pipe)
                try:
                    result = pipe.recv()
                    self._idle.append(pipe)
                except (EOFError, OSError):
                    if tries[index] < _TRIES:
                        waiting.appendleft(index)
                        continue
                    result = Failed(f'its process died, {_TRIES} times')
                yield index, result

    def _start(self) -> Connection:
        ours, theirs = _SPAWN.Pipe()
        threads = max(1, (os.cpu_count() or 1) // self._jobs)
        process = _SPAWN.Process(target=_work, args=(theirs, threads))
        # the mask is inherited: also while a process starts, Ctrl-C is the caller's business
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        process.start()
        self._processes.append(process)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        theirs.close()  # so that the pipe breaks when the process dies
        return ours


def _work(pipe: Connection, threads: int) -> None:
    """Do jobs in a local process, with its share of the cores, until told to end, or the caller dies."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that `finally` ends what a job has started
    signal.signal(signal.SIGINT, lambda *_: None)  # not ignored, which the processes of a job would inherit
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=_end_with_caller, daemon=True).start()
    os.environ.setdefault('OMP_NUM_THREADS', str(threads))  # for the processes of a job, and for a later torch
    if 'torch' in sys.modules:
        sys.modules['torch'].set_num_threads(int(os.environ['OMP_NUM_THREADS']))
    while True:
        result = _attempt(*pipe.recv())
        try:
            pipe.send(result)
        except (TypeError, AttributeError, pickle.PicklingError) as error:
            pipe.send(Failed(f'{type(error).__name__}: {error}'))


def _end_with_caller() -> None:
    if caller := multiprocessing.parent_process():
        caller.join()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_PATIENCE)
    os._exit(1)


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

    def _results(self, function: _Function, jobs: Sequence[Any]) -> _Results:
        alone: list[int] = []
        yield from self._finished(function, jobs, range(len(jobs)), alone)
        for index in alone:
            yield from self._finished(function, jobs, [index])

    def _finished(
        self, function: _Function, jobs: Sequence[Any], indices: Iterable[int], lost: list[int] | None = None
    ) -> _Results:
        """Results of some jobs. Those whose workers died, maybe by other jobs, go to a list if there is one."""
        from distributed import as_completed

        numbers = {self._client.submit(_attempt, function, jobs[i], pure=False): i for i in indices}
        for future in as_completed(list(numbers), loop=self._client.loop):
            try:
                yield numbers[future], future.result()
            except CancelledError:
                raise KeysegError('the connection to the Dask scheduler was lost') from None
            except Exception as error:  # not the job's own: those are results
                if lost is None:
                    yield numbers[future], Failed(f'{type(error).__name__}: {error}')
                else:
                    lost.append(numbers[future])
