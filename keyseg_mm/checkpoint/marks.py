"""Copies that carry a mark of whose they are: what a mark is here, and what its file says of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from torch import Tensor

from keyseg_mm.checkpoint.opened import Opened
from keyseg_mm.errors import LockError
from keyseg_mm.stamp import stamps_of

#: Is given a plain weight, contiguous, whole or one after another of its blocks, and marks it in its place.
Add = Callable[[Tensor], None]


class Mark(Protocol):
    """What tells a licensee's copy from others, see :class:`keyseg_mm.tracing.Fingerprint`."""

    @property
    def strength(self) -> float:
        """What stamps say of it."""

    def put(self, tensors: Mapping[str, Any]) -> None:
        """Put it into plain weights, whose memory is overwritten."""

    def adder(self, tensors: Mapping[str, Any]) -> Callable[[str, Tensor], Add]:
        """What makes, for each weight, what puts it into its rows; of ``tensors`` those of one dimension are plain."""


def put_mark(opened: Opened, mark: Mark) -> None:
    """Mark a plain checkpoint, and drop its other sections: they hold weights without the mark.

    Raises:
        LockError: it is not plain.
    """
    if opened.stamp is not None or stamps_of(opened.state_dict):
        raise LockError('a fingerprint is put into plain weights; for a copy of a locked file: keyseg rekey --licensee')
    opened.drop_others()
    mark.put(opened.state_dict)


def strength_of(opened: Opened, to_come: Mark | None = None) -> float:
    """How strong a mark a checkpoint has by its stamps, or is going to have; 0 for none.

    Raises:
        LockError: it would have two.
    """
    stamps = [opened.stamp, *stamps_of(opened.state_dict).values()]
    found = max((stamp.fingerprint for stamp in stamps if stamp is not None), default=0.0)
    if found and to_come is not None:
        raise LockError('this is a copy with a fingerprint already; make a copy of what that one was made of')
    return found if to_come is None else to_come.strength
