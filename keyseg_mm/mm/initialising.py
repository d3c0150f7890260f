"""Models of the host get their first weights by ``init_weights()``; a protected one's carry its maps from then on."""

from __future__ import annotations

import functools
from contextlib import ExitStack
from contextvars import ContextVar
from typing import Any

from mmengine.model import BaseModule

from keyseg_mm.runtime.attach import protected_modules

_METHOD, _MARK = 'init_weights', '_keyseg_carries'
_is_inside: ContextVar[bool] = ContextVar('keyseg_mm_init_weights', default=False)


def is_initialising() -> bool:
    """Whether the host is filling a model now."""
    return _is_inside.get()


def carry_at_init(kind: type[Any] = BaseModule) -> None:
    """Let the weights of protected modules carry their maps once a class's ``init_weights`` has filled them.

    The outermost call counts: whatever a model's parts draw or read from a file belongs to plain weights. Classes of
    the host that have an ``init_weights`` of their own need it each, since they may be built alone.
    """
    for owner in kind.__mro__:
        old = vars(owner).get(_METHOD)
        if old is not None and not hasattr(old, _MARK):
            setattr(owner, _METHOD, _carrying(old))


def _carrying(old: Any) -> Any:
    @functools.wraps(old)
    def init_weights(self: Any, *args: Any, **kwargs: Any) -> Any:
        if _is_inside.get():
            return old(self, *args, **kwargs)
        token = _is_inside.set(True)
        try:
            with ExitStack() as stack:
                for module, protection in protected_modules(self):
                    stack.enter_context(protection.filling(module))
                return old(self, *args, **kwargs)
        finally:
            _is_inside.reset(token)

    setattr(init_weights, _MARK, True)
    return init_weights
