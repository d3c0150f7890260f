"""Secret orders of a tensor's values, and which of its values they move.

Moving values changes none of their bits: they are handled as integers of the same width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from keyseg_mm.errors import LockError
from keyseg_mm.keys.derive import KeyStream
from keyseg_mm.keys.secret import Secret, unseen

#: Names of the kinds of orders that there are; they differ in how many of a tensor's values are moved.
ORDERS = ('TensorPermutation', 'SelectiveEncryption')
#: Why a transform is refused that would be the identity with every key.
SINGLE = 'a single channel has no other order, and no map hides it; leave this point out'
#: Whoever reads a stream of bytes beside a weight, part by part, reads whole words of it; see :func:`blocks`.
ROWS = 8
_BLOCK = 2**18  # values of a part, about
_RAW = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes of a value

Order = NDArray[np.int64]
#: What some rows (entries of dimension 0) of a weight become, in new memory.
OfRows = Callable[[Tensor], Tensor]


def sorted_order(stream: KeyStream, n: int) -> NDArray[np.int64]:
    """A uniform permutation of ``0..n-1`` for large n: the order of n words of the stream, smallest first.

    Words that are all different come in each of their n! orders equally often, so their order is exactly uniform, and
    the same by whatever sorting algorithm. Two equal words would leave a choice: then all n are thrown away and the
    next n of the stream taken, which happens less than once in ``2**65 / n**2`` times. Fisher and Yates' shuffle
    depends on itself from step to step and takes Python 15 times as long.
    """
    while True:
        words = (stream.words(n) ^ np.uint64(2**63)).view(np.int64)  # torch sorts signed ones: the same order
        smallest_first, found = torch.from_numpy(words).sort()
        if not bool((smallest_first[1:] == smallest_first[:-1]).any()):
            return found.numpy()


def stays(order: NDArray[Any]) -> NDArray[np.bool_]:
    """Which places of an order keep their value."""
    same: NDArray[np.bool_] = np.equal(order, np.arange(len(order)))
    return same


def select_channels(x: Tensor, dim: int, table: Tensor) -> Tensor:
    """``x.index_select(dim, table)``, by the faster of torch's ways: on a CPU that is gather for innermost channels."""
    if x.device.type == 'cpu' and x.stride(dim) == 1 and dim % x.dim() == x.dim() - 1:
        return x.gather(dim, table.expand(x.shape))
    return x.index_select(dim, table)


def blocks(weight: Tensor) -> tuple[Tensor, ...]:
    """A weight's rows (entries of dimension 0) in parts that stay in the processor's cache.

    All parts but the last are of a multiple of :data:`ROWS` rows.
    """
    if not weight.dim():
        return (weight,)
    rows = _BLOCK * len(weight) // max(1, weight.numel())
    return torch.split(weight, max(ROWS, rows // ROWS * ROWS))


def table_tensor(array: NDArray[Any], device: torch.device, dtype: torch.dtype) -> Tensor:
    """A table as a tensor for feature maps of that device and dtype."""
    if array.dtype == np.int64:
        dtype = torch.int64
    elif array.dtype == np.float64 and dtype != torch.float64:
        dtype = torch.float32  # half precision is computed in float32 and rounded once
    return torch.from_numpy(np.ascontiguousarray(array)).to(device=device, dtype=dtype)


class WeightMap(Protocol):
    """What can be carried into a weight and out of it again: a channel map, or the order of a tensor's values."""

    def inverse(self) -> WeightMap: ...
    def compose(self, first: Any) -> WeightMap: ...
    def carry(self, weight: Tensor, out: Tensor | None = None) -> Tensor: ...
    def by_rows(self, weight: Tensor) -> OfRows | None: ...
    def misfit(self, weight: Any) -> str: ...


class ValueOrder(Secret):
    """An order of ``count`` values of a tensor; ``m.inverse().carry(m.carry(w))`` is w, bit for bit.

    Orders are as large as the weights, so that they are derived when a weight is carried and not kept.

    Args:
        count: how many values.
        order: derives the secret order: value i comes from place ``order()[i]`` among the values.
    """

    __slots__ = ('count', 'order')

    def __init__(self, count: int, order: Callable[[], Order]) -> None:
        self.count, self.order = count, order

    @property
    def public_id(self) -> str:
        return f'of {self.count} values'

    def inverse(self) -> ValueOrder:
        """The map that undoes this one."""
        return ValueOrder(self.count, lambda: _undo(self.order()))

    def compose(self, first: ValueOrder) -> ValueOrder:
        """The map that carries ``first`` and then this one, in one step."""
        return ValueOrder(self.count, lambda: first.order()[self.order()])

    @unseen
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

    def by_rows(self, weight: Tensor) -> OfRows | None:
        """What carries the map into some of a weight's rows alone; None where a row needs others."""
        return None

    def misfit(self, weight: Any) -> str:
        """What a weight would have to be for :meth:`carry`, in words; empty where it is that."""
        fits = not why_not(weight) and weight.numel() >= self.count
        return '' if fits else f'floating-point tensor of {self.count} values or more'


def _put(values: Tensor, weight: Tensor, out: Tensor | None) -> Tensor:
    """Raw values as a tensor like the weight, in ``out`` if there is one."""
    moved = values.view(weight.dtype).view(weight.shape)
    return moved if out is None else out.detach().copy_(moved)


def _undo(order: Order) -> Order:
    inverse = np.empty_like(order)  # sorting would take longer
    inverse[order] = np.arange(len(order))
    return inverse


def why_not(value: Any) -> str:
    """Why a state_dict's entry is left as it is, in words; empty for a tensor whose values can be moved."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return 'no floating-point tensor'
    if value.layout != torch.strided or value.is_meta or value.is_quantized:
        return 'its values do not lie in memory one by one'
    return '' if value.numel() > 1 else 'a single value has no other place to go'


def raw(tensor: Tensor) -> Tensor:
    """A tensor's values in the order of their indices as integers of the same bits: moving them changes none."""
    return tensor.detach().contiguous().reshape(-1).view(_RAW[tensor.element_size()])


def magnitudes(values: Tensor) -> Tensor:
    """Integers that are ordered as the magnitudes of raw floating-point values: all bits but the sign's."""
    return values & (torch.iinfo(values.dtype).max if values.dtype.is_signed else 0x7F)


def fitting(weight: Tensor, count: int) -> int:
    """The largest number of values up to ``count`` that are larger in magnitude than all others.

    Equal magnitudes are all taken or all left: once moved they could not be told apart by their place.
    """
    if count >= weight.numel():
        return weight.numel()
    if count < 1:
        return 0
    sizes = magnitudes(raw(weight))
    smallest = sizes.topk(count).values[-1]
    return count if int((sizes >= smallest).sum()) == count else int((sizes > smallest).sum())


def places(values: Tensor, count: int) -> Tensor | None:
    """Where the ``count`` values of the largest magnitude are: ascending indices, or None where that is not certain.

    The places are the same before and after those values changed theirs, which is what lets unlocking find them again.

    Args:
        values: raw ones, see :func:`raw`.
        count: at most as many as there are.
    """
    if count == len(values):
        return torch.arange(count, device=values.device)
    sizes = magnitudes(values)
    found = (sizes >= sizes.topk(count).values[-1]).nonzero().flatten()
    return found if len(found) == count else None
