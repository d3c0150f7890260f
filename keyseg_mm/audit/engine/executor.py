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
from collections.abc import Callable, Sequence
from concurrent import futures
from dataclasses import dataclass
from multiprocessing import resource_tracker
from pathlib import Path
from traceback import extract_tb
from typing import Any, TypeVar

from keyseg_mm.errors import KeysegError
from keyseg_mm.keys.content import handed_on

J = TypeVar('J')
R = TypeVar('R')

_SPAWN = multiprocessing.get_context('spawn')  # the fork of a process with torch's threads in it may hang
_PATIENCE = 10.0  # seconds that a cluster has to answer, and a process to end what it has started
_AT_ONCE = 1000  # jobs that a cluster is given at a time
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
        self._run(function, jobs, done)

    def __exit__(self, *_: object) -> None:
        return None

    def _run(self, function: Callable[[Any], Any], jobs: Sequence[Any], done: Callable[[int, Any], object]) -> None:
        for index, job in enumerate(jobs):
            done(index, _attempt(function, job))


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


def _attempt(function: Callable[[Any], Any], job: Any) -> Any:
    """The function's result; an error that it raises becomes one."""
    try:
        with _ALONE:
            return function(job)
    except Exception as error:  # whatever it is, the other jobs are still worth running
        return Failed(reason(error))


def reason(error: Exception) -> str:
    """An error in a line, with where it came from."""
    where = extract_tb(error.__traceback__)[-1]
    return f'{type(error).__name__}: {error} ({Path(where.filename).name}, line {where.lineno})'


class _SideBySide(Executor):
    """Jobs at several places, each of the interface of :mod:`concurrent.futures` and given one job at a time.

    A job whose process died, maybe by another job, is tried once more, alone, when all others are done.
    """

    def __init__(self, places: Sequence[futures.Executor]) -> None:
        self._free = list(places)

    def _run(self, function: Callable[[Any], Any], jobs: Sequence[Any], done: Callable[[int, Any], object]) -> None:
        waiting, lost = deque(range(len(jobs))), deque[int]()
        busy: dict[futures.Future[Any], tuple[int, futures.Executor, bool]] = {}
        while waiting or lost or busy:
            while (waiting and self._free) or (lost and not busy):
                again, place = not waiting, self._free.pop()
                index = lost.popleft() if again else waiting.popleft()
                busy[self._submit(place, function, jobs[index])] = index, place, again
            for future in futures.wait(busy, return_when=futures.FIRST_COMPLETED).done:
                index, place, again = busy.pop(future)
                try:
                    result = future.result()
                except futures.CancelledError:
                    raise KeysegError('the connection to the Dask scheduler was lost') from None
                except Exception as error:  # not the job's own: those are results
                    self._free.append(self._renewed(place))
                    if not again:
                        lost.append(index)
                        continue
                    result = Failed(f'{type(error).__name__}: {error}')
                else:
                    self._free.append(place)
                done(index, result)

    def _submit(self, place: futures.Executor, function: Callable[[Any], Any], job: Any) -> futures.Future[Any]:
        return place.submit(_attempt, function, job)

    def _renewed(self, place: futures.Executor) -> futures.Executor:
        """What takes the place of one whose process died."""
        return place


class _Local(_SideBySide):
    """Local processes, each a pool of its own, so that one that dies breaks no other."""

    def __init__(self, jobs: int) -> None:
        self._threads = max(1, (os.cpu_count() or 1) // jobs)
        self._processes: set[Any] = set()
        super().__init__([self._renewed() for _ in range(jobs)])

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.join(_PATIENCE)
            process.kill()

    def _submit(self, place: futures.Executor, function: Callable[[Any], Any], job: Any) -> futures.Future[Any]:
        # the mask is inherited: also while a process starts, Ctrl-C is the caller's business
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        resource_tracker.ensure_running()  # which needs no key, and would inherit it
        with handed_on():  # whoever does a job follows its locators
            future = place.submit(_attempt_or_end, function, job)
        self._processes.update(place._processes.values())  # type: ignore[attr-defined]
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        return future

    def _renewed(self, place: futures.Executor | None = None) -> futures.Executor:
        return futures.ProcessPoolExecutor(1, _SPAWN, _begin, (self._threads,))


def _begin(threads: int) -> None:
    """Make a process ready for jobs, with its share of the cores, until told to end, or the caller dies."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that `finally` ends what a job has started
    signal.signal(signal.SIGINT, lambda *_: None)  # not ignored, which the processes of a job would inherit
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=_end_with_caller, daemon=True).start()
    os.environ.setdefault('OMP_NUM_THREADS', str(threads))  # for the processes of a job, and for a later torch
    if 'torch' in sys.modules:
        sys.modules['torch'].set_num_threads(int(os.environ['OMP_NUM_THREADS']))


def _end_with_caller() -> None:
    if caller := multiprocessing.parent_process():
        caller.join()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_PATIENCE)
    os._exit(1)


def _attempt_or_end(function: Callable[[Any], Any], job: Any) -> Any:
    try:
        return _attempt(function, job)
    except SystemExit:  # which a pool would take for a result
        os._exit(1)


class _Dask(_SideBySide):
    """The workers of a Dask cluster. It runs a job whose worker dies on another one, and gives up after four."""

    def __init__(self, scheduler: str) -> None:
        try:
            from distributed import Client
        except ImportError:
            raise KeysegError("--scheduler needs Dask, which is not installed: pip install 'keyseg-mm[dask]'") from None
        try:
            self._client = Client(scheduler, timeout=_PATIENCE, set_as_default=False)
        except Exception as error:  # an address that means nothing raises what it likes
            raise KeysegError(f'--scheduler {scheduler}: no Dask scheduler answers there ({error})') from None
        super().__init__([self._client.get_executor(pure=False)] * _AT_ONCE)

    def __exit__(self, *_: object) -> None:
        self._client.close(timeout=_PATIENCE)
