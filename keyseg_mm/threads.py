"""Work on large buffers, shared out to threads: what does it leaves Python's lock to others most of the time."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

_MOST_THREADS = 8
_T = TypeVar('_T')
_R = TypeVar('_R')


def in_threads(work: Callable[[_T], _R], items: Iterable[_T]) -> list[_R]:
    """The results of work, in the order of the items; at an error no thread is at work any more when it is raised.

    Raises:
        Exception: what work raised, of the first item of those where it did.
    """
    todo = list(items)
    threads = min(os.cpu_count() or 1, _MOST_THREADS, len(todo))
    if threads <= 1:
        return list(map(work, todo))
    left, results, errors = deque(range(len(todo))), dict[int, _R](), dict[int, Exception]()

    def run() -> None:  # one item after another: a task for each would wake this thread as often, amid the others
        with suppress(IndexError):
            while True:
                at = left.popleft()
                try:
                    results[at] = work(todo[at])
                except Exception as error:
                    errors[at] = error
                    left.clear()

    with ThreadPoolExecutor(threads) as pool:
        try:
            for running in [pool.submit(run) for _ in range(threads)]:
                running.result()
        finally:
            left.clear()
    if errors:
        raise errors[min(errors)]
    return [results[at] for at in range(len(todo))]
