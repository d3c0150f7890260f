"""What makes tests come out the same every time, in whatever order they run and however busy the machine is."""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
import random
import sys
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from mmengine.utils import ManagerMixin

from keyseg_mm.keys import content

_urandom, _monotonic = os.urandom, time.monotonic


class Draws:
    """Stands in for ``os.urandom``: the package's keys and salts are the same every time, and no two of a test alike.

    Whoever else draws gets real randomness, so that names of temporary files and the like stay unique.
    """

    def __init__(self) -> None:
        self.begin('')

    def begin(self, label: str) -> None:
        """Start the sequence that belongs to a label."""
        self._label, self._count = label, itertools.count()

    def __call__(self, size: int) -> bytes:
        if not _is_asked_by_the_package():
            return _urandom(size)
        return hashlib.shake_256(f'{self._label}/{next(self._count)}'.encode()).digest(size)


class Ticks:
    """Stands in for ``time.monotonic``: for the package, time passes only where it is looked at, or by :meth:`skip`.

    So a budget of seconds buys the same number of steps on every machine. For all others it passes as it does.
    """

    TICK = 0.005  # seconds, about what a step of an attack on a small model takes

    def __init__(self) -> None:
        self._now = 0.0

    def skip(self, seconds: float) -> None:
        """Let time pass."""
        self._now += seconds

    def __call__(self) -> float:
        if not _is_asked_by_the_package():
            return _monotonic()
        self.skip(self.TICK)
        return self._now


def _is_asked_by_the_package() -> bool:
    return sys._getframe(2).f_globals.get('__name__', '').partition('.')[0] == 'keyseg_mm'


class Seconds:
    """Stands in for the module ``time`` where the host's Runner is: each Runner gets a second of its own.

    Runners are named after the second in which they are built; two of one name would share a logger and its file.
    """

    def __init__(self) -> None:
        self._now = itertools.count(1_700_000_000)

    def time(self) -> int:
        return next(self._now)

    def __getattr__(self, name: str):
        return getattr(time, name)


DRAWS, TICKS = Draws(), Ticks()


def begin(label: str) -> None:
    """Set what a test or a fixture depends on and others may have moved: generators, and the host's registers."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    DRAWS.begin(label)
    for logger in MMLogger._instance_dict.values():
        for handler in logger.handlers:
            if isinstance(handler, logging.FileHandler):
                handler.close()
    for register in _registers(ManagerMixin):
        register._instance_dict = OrderedDict()
    init_default_scope('mmseg')


def _registers(cls: type) -> Iterator[type]:
    for child in cls.__subclasses__():
        yield child
        yield from _registers(child)


@contextmanager
def put_back() -> Iterator[None]:
    """Undo what a test changes in the process and leaves changed."""
    environment, folder, arguments, path = dict(os.environ), Path.cwd(), list(sys.argv), list(sys.path)
    dtype, threads, grad = torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled()
    disabled = logging.root.manager.disable
    content._taken.clear()
    yield
    if dict(os.environ) != environment:
        os.environ.clear()
        os.environ.update(environment)
    os.chdir(folder)
    sys.argv[:], sys.path[:] = arguments, path
    torch.set_default_dtype(dtype)
    torch.set_grad_enabled(grad)
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    logging.disable(disabled)
