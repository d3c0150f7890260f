"""The mends that let mmsegmentation run on today's torch and under both of its distributions.

1. A training checkpoint holds mmengine's HistoryBuffer (training curves) and numpy arrays in it, which torch >= 2.6
   refuses to load. :data:`HOST_NAMES` lets a resumed run have its curves back, and their pickle nothing else.
2. onedl-mmengine maps ``mmseg::`` in ``_base_`` to the distribution name mmsegmentation, which the maintained fork does
   not carry. :func:`name_distributions` corrects the map; this package's tools call it before they read a config, and
   configs for the host's own tools do, by ``_base_ = __import__('keyseg_mm').bases('mmseg::...')``.
3. mmengine's torchrun launcher picks a GPU for each process even where torch has none. :func:`start_without_gpu` makes
   that a no-op on such a machine; only this package's tools call it. (Config for such runs: dist_cfg backend gloo and
   ``model_wrapper_cfg=dict(type='MMDistributedDataParallel', device_ids=None)``.)
4. The host's ``--cfg-options`` drop blanks and cut at commas. :func:`keep_locators_whole` lets the locator of a key
   through as it is, so that a file may be called what it likes; only this package's tools call it.
5. The host's tools end without leaving their process group, and a process that is still at work in it when another one
   is gone may be aborted. Those that left are, once in some dozens of runs on a busy machine, aborted by threads that
   outlive the interpreter. :func:`end_together` lets all of them leave together, and end before that can happen.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
from importlib import metadata
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from mmengine.config import DictAction
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.logging import HistoryBuffer

from keyseg_mm.checkpoint.known import Known, Names, UnreadableError
from keyseg_mm.checkpoint.values import NAMES, curve_names
from keyseg_mm.keys.locator import is_locator

TESTED = {  # the newest of each that the tests have run with
    'mmsegmentation': '1.2.2',
    'mmengine': '0.10.7',
    'onedl-mmsegmentation': '1.4.2',
    'onedl-mmengine': '0.10.12',
}


def _curve() -> HistoryBuffer:
    return HistoryBuffer.__new__(HistoryBuffer)


def _fill_curve(curve: HistoryBuffer, state: Any) -> None:
    """Give a curve its values; its own way to do that lets a file replace its methods."""
    values, counts, longest = (state[name] for name in ('_log_history', '_count_history', 'max_length'))
    if not all(isinstance(found, np.ndarray) for found in (values, counts)) or type(longest) is not int:
        raise UnreadableError
    curve.__dict__.update(_log_history=values, _count_history=counts, max_length=longest)


HOST_NAMES: Names = {**NAMES, **curve_names(Known(_curve, HistoryBuffer, _fill_curve))}


def installed_version(*names: str) -> tuple[str, str] | None:
    """Name and version of the first of these distributions that is installed."""
    for name in names:
        try:
            return name, metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def name_distributions() -> None:
    """Mend 2, and ``keyseg_mm::`` in ``_base_`` for this package's own configs."""
    found = installed_version('mmsegmentation', 'onedl-mmsegmentation')
    if found is not None:
        MODULE2PACKAGE['mmseg'] = found[0]
    MODULE2PACKAGE.setdefault('keyseg_mm', 'keyseg_mm')


def bases(*paths: str) -> list[str]:
    """Mend 2 from within a config: what ``_base_`` is to be, for tools of the host that import nothing of this package.

    Args:
        paths: of base configs, as ``'mmseg::...'``.
    """
    name_distributions()
    return list(paths)


def start_without_gpu() -> None:
    """Mend 3; does nothing where there is a GPU."""
    if not torch.cuda.is_available():
        torch.cuda.set_device = lambda device: None  # type: ignore[assignment,misc]


def keep_locators_whole() -> None:
    """Mend 4; once."""
    old = DictAction.__call__
    if hasattr(old, '__wrapped__'):
        return

    @functools.wraps(old)
    def call(self: Any, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        pairs = [(value, *value.partition('=')[::2]) for value in values or ()]
        whole = {n: text.strip('\'"') for _, n, text in pairs if n.endswith('.key') and is_locator(text.strip('\'"'))}
        old(self, parser, namespace, [value for value, n, _ in pairs if n not in whole], option_string)
        getattr(namespace, self.dest).update(whole)

    DictAction.__call__ = call


def end_together() -> None:
    """Mend 5: ends this process, successfully, with the others of its run; does nothing in a run of one process."""
    if not (dist.is_available() and dist.is_initialized()):
        return
    dist.barrier()
    dist.destroy_process_group()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
