"""Timing by turns and memory, for benchmarks that need no host."""

from __future__ import annotations

import ctypes
import gc
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tqdm import tqdm


def quartiles(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4, method='inclusive') if len(values) > 1 else [values[0]] * 3
    return {'median': middle, 'q1': low, 'q3': high}


def peak_memory() -> float:
    """The most memory that this process ever held, in MiB.

    ``VmHWM`` on Linux: ``ru_maxrss`` there starts from what the parent held when it forked.
    """
    status = Path('/proc/self/status')
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith('VmHWM'))
        return int(line.split()[1]) / 2**10
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _give_back() -> None:
    """Give memory that is free back to the system, where the C library is glibc (``malloc_trim(3)``)."""
    if sys.platform == 'linux':
        with suppress(AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


def time_ways(
    ways: dict[str, Callable[[], object]], rounds: int, what: str, after_each: Callable[[], object] = lambda: None
) -> dict[str, Any]:
    """Ratios to the base of every way. The base runs before and after each of them, and their mean counts.

    Each begins as in a process that loads its first model: what others have freed is given back to the system before.
    """

    def seconds(way: str) -> float:
        _give_back()
        start = time.perf_counter()
        ways[way]()
        taken = time.perf_counter() - start
        after_each()
        return taken

    ratios: dict[str, list[float]] = {name: [] for name in ways if name != 'base'}
    noise, base_seconds = [], []
    for way in ways:
        seconds(way)
    gc.collect()
    gc.disable()
    try:
        for _ in tqdm(range(rounds), desc=what, unit='round', leave=False):
            before = seconds('base')
            for name in ratios:
                taken = seconds(name)
                after = seconds('base')
                ratios[name].append(2 * taken / (before + after))
                noise.append(after / before)
                base_seconds.append(after)
                before = after
    finally:
        gc.enable()
    return {
        'base s': quartiles(base_seconds)['median'],
        'noise': quartiles(noise),
        'ratios': {name: quartiles(values) for name, values in ratios.items()},
    }
