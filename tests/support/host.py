"""The host's code, run in this process as if in one of its own."""

from __future__ import annotations

import contextlib

from mmengine.logging import MMLogger
from mmengine.utils import ManagerMixin

from keyseg_mm.demo.run import quiet


@contextlib.contextmanager
def host(log):
    """Send what it prints to ``log``, and put its global registers back afterwards."""
    with registers_kept(), quiet(log):
        yield


@contextlib.contextmanager
def registers_kept():
    """Put the host's global registers back afterwards, and close what its loggers opened."""
    kept = {cls: cls._instance_dict.copy() for cls in _subclasses(ManagerMixin)}
    try:
        yield
    finally:
        for name, logger in MMLogger._instance_dict.items():
            for handler in logger.handlers if name not in kept[MMLogger] else ():
                handler.close()
        for cls in _subclasses(ManagerMixin):
            cls._instance_dict.clear()
            cls._instance_dict.update(kept.get(cls, {}))


def _subclasses(cls):
    return [found for child in cls.__subclasses__() for found in (child, *_subclasses(child))]
