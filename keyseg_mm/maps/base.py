"""Maps: what every secret transform of a feature map is, and what a channel map is besides.

``T.inverse()(T(x)) == x``. All maps are orthogonal, so the gradient goes back through the inverse: an exact,
deterministic gather instead of the scatter that autograd would use for a permutation.

A channel map is one and the same orthogonal map of the channels at every position. That is what a linear layer's
weights can take in, so only a model with such maps can be locked after training.
"""

from __future__ import annotations

from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from keyseg_mm.errors import TransformError
from keyseg_mm.keys.derive import KeyStream
from keyseg_mm.keys.secret import Secret, unseen
from keyseg_mm.maps.order import SINGLE, OfRows, blocks, table_tensor

#: Secret tables as tensors.
Tables = tuple[Tensor, ...]

_Map = TypeVar('_Map', bound='Map')


class Map(Secret):
    """An orthogonal transform T of a feature map, ``y = T(x)``.

    What it does is a pure function of the map and its secret tables, :meth:`apply`, so that a compiler sees the tables
    as inputs. Tensors of the tables are made once per device and dtype, and kept.

    Args:
        tables: the secret tables, in the order of :attr:`names`, which :meth:`apply` takes them in.
    """

    __slots__ = ('_arrays', '_inverse', '_placed')

    #: Whether T only moves and negates values, so that T and its inverse change no bit of a magnitude.
    exact: ClassVar[bool] = True
    #: What each table is.
    names: ClassVar[tuple[str, ...]] = ()
    #: Smallest and largest ``block``, where the transform takes that parameter.
    block_sizes: ClassVar[tuple[int, int] | None] = None
    #: Whether the transform takes ``groups``: as many parts of the channels, of one size, which it does not mix.
    keeps_groups: ClassVar[bool] = False

    def __init__(self, *tables: NDArray[Any]) -> None:
        self._arrays = tables
        self._inverse: Any = None
        self._placed: dict[tuple[torch.device, torch.dtype], Tables] = {}

    @property
    def channels(self) -> int:
        """How many channels its feature maps have."""
        return len(self._arrays[0])

    @classmethod
    def derive(cls, stream: KeyStream, channels: int, **params: Any) -> Map:
        """The transform that a keystream gives for this number of channels.

        A map that changes fewer than half of its values, rounded down, or none (of two channels, every second
        permutation does) is drawn again from where the stream is.

        Raises:
            TransformError: see :meth:`check`; or there is a single value, and nothing to choose from.
        """
        cls.check(**params)
        if channels % params.get('groups', 1):
            raise TransformError(f'{channels} channels do not make {params["groups"]} groups')
        if cls.values(channels, **params) < 2:
            raise TransformError(SINGLE)
        while True:
            drawn = cls(*cls._drawn(stream, channels, **params))
            changed = ~drawn._kept()
            if changed.sum() >= max(1, len(changed) // 2):
                return drawn

    @classmethod
    def values(cls, channels: int, **params: Any) -> int:
        """How many values the transform chooses an order, signs or a turn for."""
        return channels

    def _kept(self) -> NDArray[np.bool_]:
        """Which of its values the transform leaves nearly as they are."""
        raise NotImplementedError

    @classmethod
    def _drawn(cls, stream: KeyStream, channels: int, **params: Any) -> tuple[NDArray[Any], ...]:
        """The tables."""
        raise NotImplementedError

    @classmethod
    def check(cls, **params: Any) -> None:
        """Refuse parameters that this transform does not take.

        Raises:
            TransformError: an unknown parameter or a bad value.
        """
        known = {'block': cls.block_sizes, 'groups': cls.keeps_groups}
        unknown = {name for name in params if not known.get(name)}
        if unknown:
            raise TransformError(f'{cls.__name__} takes no {", ".join(map(repr, unknown))}')
        low, high = cls.block_sizes or (0, 0)
        block = params.get('block', low)
        if not isinstance(block, int) or isinstance(block, bool) or not low <= block <= high:
            raise TransformError(f'{cls.__name__}: block is a whole number from {low} to {high}, not {block!r}')
        groups = params.get('groups', 1)
        if not isinstance(groups, int) or isinstance(groups, bool) or groups < 1:
            raise TransformError(f'{cls.__name__}: groups is a whole number from 1, not {groups!r}')

    @classmethod
    def why_not(cls, dim: int, dims: int) -> str:
        """Why a map of ``dims`` dimensions with its channels in ``dim`` does not suit; empty where it does."""
        return ''

    @classmethod
    def key_space(cls, channels: int, **params: Any) -> float:
        """log2 of the number of different maps of so many channels; infinite where they cannot be counted."""
        raise NotImplementedError

    @property
    def public_id(self) -> str:
        return f'of {self.channels} channels'

    def inverse(self: _Map) -> _Map:
        """The transform that undoes this one; the inverse of the inverse is this object."""
        if self._inverse is None:
            self._inverse = self._invert()
            self._inverse._inverse = self
        found: _Map = self._inverse
        return found

    @unseen
    def __call__(self, x: Tensor, dim: int = 1) -> Tensor:
        """Apply the transform.

        Args:
            x: floating-point tensor of any layout; its dtype, shape and memory format are kept.
            dim: channel dimension.

        Raises:
            TransformError: the dimension has another size than the transform, or the map does not suit it.
        """
        self.refuse_unfit(x, dim, self.channels)
        tables = self.placed(x.device, x.dtype)
        if x.requires_grad and torch.is_grad_enabled():
            return self.work(x, dim, tables, self.inverse().placed(x.device, x.dtype))
        return self.apply(x, dim, tables)

    @classmethod
    def refuse_unfit(cls, x: Tensor, dim: int, channels: int) -> None:
        """Refuse a feature map that a transform of this kind and size does not suit.

        Raises:
            TransformError: it does not.
        """
        problem = cls.why_not(dim, x.dim())
        if problem:
            raise TransformError(problem)
        if x.shape[dim] != channels:
            raise TransformError(f'a map of {channels} channels met {x.shape[dim]} of them, shape {tuple(x.shape)}')

    @classmethod
    def work(cls, x: Tensor, dim: int, tables: Tables, inverse: Tables) -> Tensor:
        """:meth:`apply`, with a way back for the gradient.

        Args:
            x: floating-point tensor.
            dim: channel dimension.
            tables: of the transform, from :meth:`placed`.
            inverse: of its inverse.
        """
        if x.requires_grad and torch.is_grad_enabled():
            result: Tensor = _Apply.apply(x, cls, dim, *tables, *inverse)  # type: ignore[no-untyped-call]
            return result
        return cls.apply(x, dim, tables)

    @classmethod
    def apply(cls, x: Tensor, dim: int, tables: Tables) -> Tensor:
        """The transformed map, in the order of memory of ``x``; never a view of it."""
        raise NotImplementedError

    def placed(self, device: torch.device, dtype: torch.dtype) -> Tables:
        """The tables as tensors for maps of that device and dtype: indices int64, signs ``dtype``, matrices wider."""
        found = self._placed.get((device, dtype))
        if found is None:
            found = tuple(table_tensor(array, device, dtype) for array in self._arrays)
            self._placed[device, dtype] = found
        return found

    def tables(self) -> dict[str, NDArray[Any]]:
        """The secret tables, and inverses of permutations, for :mod:`keyseg_mm.runtime.leaks` only."""
        found = dict(zip(self.names, self._arrays))
        return {**found, **{f'inverse {n}': np.argsort(t) for n, t in found.items() if 'permutation' in n}}

    def _invert(self) -> Map:
        raise NotImplementedError


class _Apply(torch.autograd.Function):
    """Forward by the transform, backward by its inverse; differentiable again, since backward applies one too.

    Nothing secret is saved for backward in torch's way, which hooks may write to disk.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, kind: type[Map], dim: int, *tables: Tensor) -> Tensor:
        ctx.kind, ctx.dim, ctx.tables = kind, dim, tables
        # detached from the view that a kept layout is: autograd refuses in-place operations on a Function's views
        return kind.apply(x, dim, tables[: len(tables) // 2]).detach()

    @staticmethod
    @unseen
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        tables = ctx.tables
        there, back = tables[: len(tables) // 2], tables[len(tables) // 2 :]
        return (ctx.kind.work(grads[0], ctx.dim, back, there), None, None, *(None for _ in tables))


class ChannelMap(Map):
    """An orthogonal linear map T of the channel dimension, ``y = T(x)`` at every position of a feature map."""

    __slots__ = ()

    def compose(self, first: ChannelMap) -> ChannelMap:
        """The map ``x -> self(first(x))``, of the same family where the family is closed."""
        if first.channels != self.channels:
            raise TransformError(f'cannot compose maps of {first.channels} and {self.channels} channels')
        return Composition(first, self)

    def carry(self, weight: Tensor, out: Tensor | None = None) -> Tensor:
        """``W T^-1`` for a weight W: T along its input channels, dimension 1. Rotations are rounded once.

        Args:
            weight: W.
            out: takes the result, of the shape and dtype of W; may be W itself. By default a new tensor does.
        """
        self.refuse_unfit(weight, 1, self.channels)
        out = torch.empty_like(weight.detach()) if out is None else out
        run = self.by_rows(weight)
        for source, target in zip(blocks(weight.detach()), blocks(out.detach())):
            target.copy_(run(source.clone()))  # read in order: what is then read in another lies in the cache
        return out

    def by_rows(self, weight: Tensor) -> OfRows:
        """What carries the map into some of a weight's rows alone."""
        return lambda rows: self(rows, 1) if self.exact else self(rows.double(), 1).to(rows.dtype)

    def misfit(self, weight: Any) -> str:
        """What a weight would have to be for :meth:`carry`, in words; empty where it is that."""
        fits = isinstance(weight, Tensor) and weight.dim() > 1 and weight.shape[1] == self.channels
        return '' if fits else f'weight of {self.channels} input channels'

    def matrix(self) -> Tensor:
        """The map as a (channels, channels) float64 matrix M, ``T(x) = M @ x``."""
        return self(torch.eye(self.channels, dtype=torch.float64), 0)

    @classmethod
    def apply(cls, x: Tensor, dim: int, tables: Tables) -> Tensor:
        """Work on a permuted map (channels_last, transposed tokens) in its own order of memory, so that it keeps it."""
        if x.is_contiguous():
            return cls._run(x, dim, *tables)
        strides = x.stride()
        order = sorted(range(x.dim()), key=lambda d: -strides[d])
        if not x.permute(order).is_contiguous():
            return cls._run(x, dim, *tables)
        moved = cls._run(x.permute(order), order.index(dim % x.dim()), *tables)
        return moved.permute([order.index(d) for d in range(x.dim())])

    @classmethod
    def _run(cls, x: Tensor, dim: int, *tables: Tensor) -> Tensor:
        raise NotImplementedError


class Composition(ChannelMap):
    """Maps one after another, where no closed form exists."""

    __slots__ = ('first', 'then')
    exact = False

    def __init__(self, first: ChannelMap, then: ChannelMap) -> None:
        super().__init__()
        self.first, self.then = first, then

    @property
    def channels(self) -> int:
        return self.first.channels

    def __call__(self, x: Tensor, dim: int = 1) -> Tensor:
        return self.then(self.first(x, dim), dim)

    def _invert(self) -> ChannelMap:
        return Composition(self.then.inverse(), self.first.inverse())

    def tables(self) -> dict[str, NDArray[Any]]:
        return {**self.first.tables(), **{f'then {k}': v for k, v in self.then.tables().items()}}
