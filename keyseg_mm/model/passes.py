"""How a model is run to look at it: by whoever knows its host, once, small and harmlessly.

This room knows no host. Who does registers a way, as :mod:`keyseg_mm.mm.dryrun` does for models of mmsegmentation; for
any other model the caller says how to run it, by a :class:`keyseg_mm.model.sites.Trace` of passes of their own.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from keyseg_mm.errors import PointError

Passes = Mapping[str, Callable[[], object]]
#: Name of a pass at another size than that of the first one, which shows where in a map its channels are: their number
#: is the one that stays. It counts as no run besides.
OTHER_SIZE = 'other size'
_Result = TypeVar('_Result')


class Watcher(Protocol):
    """Runs a copy of a module and lets ``watch`` look on; see :func:`watch_model`."""

    def __call__(self, module: nn.Module, watch: Callable[[nn.Module, Passes], Any]) -> Any: ...


_WATCHERS: list[Watcher] = []


def register_watcher(watcher: Watcher) -> None:
    """Make a way to run models known; the last one registered is asked."""
    _WATCHERS.append(watcher)


def watch_model(module: nn.Module, watch: Callable[[nn.Module, Passes], _Result]) -> _Result:
    """Let ``watch`` run a plain copy of the module, by the passes that it is given.

    Args:
        module: stays as it is.
        watch: gets the copy and its passes by name, functions that run it once as in testing or in training.

    Raises:
        PointError: nobody here knows how to run it.
    """
    if not _WATCHERS:
        raise PointError(
            f'how to run this {type(module).__name__} is not known: give a trace, as trace=Trace.of(model, '
            "{'test': lambda: model(inputs)}), or import keyseg_mm.mm for a model of mmsegmentation"
        )
    found: _Result = _WATCHERS[-1](module, watch)
    return found


@contextmanager
def undisturbed(tensors: Iterable[Tensor] = ()) -> Iterator[None]:
    """Run the block and put all random states back after it, those of the tensors' devices too."""
    states = random.getstate(), np.random.get_state()
    devices = sorted({p.device.index for p in tensors if p.device.type == 'cuda'})
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


def seed(number: int = 0) -> None:
    """Begin all random states anew."""
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


def copied(module: nn.Module, memo: Mapping[int, Any] | None = None) -> nn.Module:
    """A copy of a module; of weights that it computes and keeps (torch's old weight norm), their values.

    Args:
        module: stays as it is.
        memo: what stands in the copy for an object, by its identity; see :func:`copy.deepcopy`.
    """
    given = dict(memo or {})
    for part in module.modules():
        for value in vars(part).values():
            if isinstance(value, Tensor) and not value.is_leaf:  # which torch copies not
                given[id(value)] = value.detach().clone()
    return copy.deepcopy(module, given)
