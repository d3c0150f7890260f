"""How a model is run to look at it: by whoever knows its host, once, small and harmlessly.

This room knows no host. Who does registers a way, as :mod:`keyseg_mm.mm.dryrun` does for models of mmsegmentation; for
any other model the caller says how to run it, by a :class:`keyseg_mm.model.sites.Trace` of passes of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

from torch import nn

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
