"""Secret orders: what :mod:`keyseg_mm.weights` chose, moved under a key."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from keyseg_mm.errors import LockError
from keyseg_mm.keys.secret import Secret
from keyseg_mm.weights import places, raw, why_not

Order = NDArray[np.int64]
Step = tuple[Callable[[], Order], bool]


class WeightMap(Protocol):
    """What can be carried into a weight and out of it again: a channel map, or the order of a tensor's values."""

    def inverse(self) -> WeightMap: ...
    def compose(self, first: Any) -> WeightMap: ...
    def carry(self, weight: Tensor, out: Tensor | None = None) -> Tensor: ...
    def misfit(self, weight: Any) -> str: ...


class TensorMap(Secret):
    """An order of ``count`` values of a tensor; ``m.inverse().carry(m.carry(w))`` is w, bit for bit.

    Orders are as large as the weights, so that they are derived when a weight is carried and not kept.

    Args:
        count: how many values.
        steps: what derives an order, and whether it is undone; one after another.
    """

    __slots__ = ('count', '_steps', '_inverse')

    def __init__(self, count: int, *steps: Step) -> None:
        self.count, self._steps = count, steps
        self._inverse: TensorMap | None = None

    @property
    def public_id(self) -> str:
        return f'of {self.count} values'

    def inverse(self) -> TensorMap:
        """The map that undoes this one; the inverse of the inverse is this object."""
        if self._inverse is None:
            self._inverse = TensorMap(self.count, *((derive, not undone) for derive, undone in reversed(self._steps)))
            self._inverse._inverse = self
        return self._inverse

    def compose(self, first: TensorMap) -> TensorMap:
        """The map that carries ``first`` and then this one, in one step."""
        return TensorMap(self.count, *first._steps, *self._steps)

    def order(self) -> Order:
        """The secret order: value i comes from place ``order[i]`` among the values."""
        found: Order | None = None
        for derive, undone in self._steps:
            step = _undo(derive()) if undone else derive()
            found = step if found is None else found[step]
        return np.arange(self.count) if found is None else found

    def carry(self, weight: Tensor, out: Tensor | None = None) -> Tensor:
        """The values in their new order.

        Args:
            weight: floating-point tensor.
            out: takes the result, of the shape and dtype of the weight; may be the weight itself. By default a new
                tensor does.

        Raises:
            LockError: it cannot be told which values.
        """
        values = raw(weight)
        if self.count == len(values):
            order = torch.from_numpy(self.order()).to(values.device)
            return _put(values[order], weight, out)
        where = places(values, self.count)
        if where is None:
            raise LockError(
                f'of this tensor of shape {tuple(weight.shape)} no {self.count} values are larger than all others, as '
                'its plan says: it was cast to another dtype, or altered'
            )
        order = torch.from_numpy(self.order()).to(where.device)
        moved = values.clone()
        moved[where] = values[where[order]]
        return _put(moved, weight, out)

    def misfit(self, weight: Any) -> str:
        """What a weight would have to be for :meth:`carry`, in words; empty where it is that."""
        fits = not why_not(weight) and weight.numel() >= self.count
        return '' if fits else f'floating-point tensor of {self.count} values or more'


def _put(values: Tensor, weight: Tensor, out: Tensor | None) -> Tensor:
    """Raw values as a tensor like the weight, in ``out`` if there is one."""
    moved = values.view(weight.dtype).view(weight.shape)
    return moved if out is None else out.detach().copy_(moved)


def _undo(order: Order) -> Order:
    inverse = np.empty_like(order)
    inverse[order] = np.arange(len(order))
    return inverse
