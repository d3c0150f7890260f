"""Work on large buffers, shared out to threads: what does it leaves Python's lock to others most of the time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

_MOST_THREADS = 8
_T = TypeVar('_T')
_R = TypeVar('_R')


def in_threads(work: Callable[[_T], _R], items: Iterable[_T]) -> list[_R]:
    """The results of work, in the order of the items; at an error no thread is at work any more when it is raised."""
    todo = list(items)
    threads = min(os.cpu_count() or 1, _MOST_THREADS, len(todo))
    if threads <= 1:
        return list(map(work, todo))
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, todo))
