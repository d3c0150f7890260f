"""The state_dict of a model that is not to be written: it loads, copies and compares, and refuses to be pickled."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any, NoReturn

from keyseg_mm.errors import KeysegError


class Unwritten(OrderedDict[str, Any]):
    """A state_dict for memory alone.

    Args:
        content: entries to take over.
        error: what is raised where it is written.
    """

    def __init__(self, content: Any = (), error: KeysegError | None = None) -> None:
        super().__init__(content)
        self._error = error or getattr(content, '_error', None) or KeysegError('this state_dict is not written')
        self._metadata = getattr(content, '_metadata', None)  # torch keeps the versions of modules there

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise type(self._error)(*self._error.args)

    def copy(self) -> Unwritten:
        return Unwritten(self)

    __copy__ = copy

    def __deepcopy__(self, memo: dict[int, Any]) -> Unwritten:
        twin = Unwritten((), self._error)
        memo[id(self)] = twin
        twin._metadata = copy.deepcopy(self._metadata, memo)
        twin.update((name, copy.deepcopy(value, memo)) for name, value in self.items())
        return twin
