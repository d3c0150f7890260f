"""How the weights of a layer carry a channel map."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from keyseg_mm.errors import TransformError
from keyseg_mm.keys.secret import Secret
from keyseg_mm.maps.base import ChannelMap, Map
from keyseg_mm.maps.order import OfRows


class Carried(Secret):
    """A channel map T as weights carry it along one of their dimensions; a :class:`keyseg_mm.maps.order.WeightMap`.

    Along dimension 1, that of a layer's input, ``W T^-1``, which for an orthogonal T is T along it. A layer that reads
    its channels in groups has those of one group there: the first outputs of all groups, side by side, are then taken
    for one output of all channels, the second ones for another, and so on; T is to keep the groups apart.

    Args:
        map: T.
        along: the dimension: 1, or 0 for weights that have their input there, and for ``T W``, of what leaves.
    """

    __slots__ = ('map', 'along')

    def __init__(self, map: ChannelMap, along: int = 1) -> None:
        self.map, self.along = map, along

    @property
    def public_id(self) -> str:
        return f'{self.map.public_id}, along dimension {self.along}'

    def inverse(self) -> Carried:
        """The map that undoes this one."""
        return Carried(self.map.inverse(), self.along)

    def compose(self, first: Carried) -> Carried:
        """The map that carries ``first`` and then this one, in one step."""
        if first.along != self.along:
            raise TransformError('one weight is said to carry maps along two of its dimensions')
        return Carried(self.map.compose(first.map), self.along)

    def carry(self, weight: Tensor, out: Tensor | None = None) -> Tensor:
        """A weight with the map carried into it; see :meth:`keyseg_mm.maps.base.ChannelMap.carry`.

        Args:
            weight: of the channels, or of those of one group.
            out: takes the result, of the shape and dtype of the weight; may be the weight itself.
        """
        if self.along == 1 and weight.shape[1] == self.map.channels:
            return self.map.carry(weight, out)
        if self.along == 0:
            found = self.map.carry(weight.unsqueeze(0)).squeeze(0)
        else:
            groups = self.map.channels // weight.shape[1]
            side_by_side = weight.reshape(groups, -1, *weight.shape[1:]).transpose(0, 1).flatten(1, 2)
            found = self.map.carry(side_by_side).reshape(-1, groups, *weight.shape[1:]).transpose(0, 1).flatten(0, 1)
        return found.contiguous() if out is None else out.detach().copy_(found)

    def by_rows(self, weight: Tensor) -> OfRows | None:
        """What carries the map into some of a weight's rows alone; None where a row needs others."""
        is_apart = self.along == 1 and weight.shape[1] == self.map.channels
        return self.map.by_rows(weight) if is_apart else None

    def misfit(self, weight: Any) -> str:
        """What a weight would have to be for :meth:`carry`, in words; empty where it is that."""
        channels, fits = self.map.channels, isinstance(weight, Tensor) and weight.dim() > self.along
        if self.along == 0:
            return '' if fits and len(weight) == channels else f'weight of {channels} channels in dimension 0'
        if fits and 0 < weight.shape[1] < channels and not channels % weight.shape[1]:
            return '' if not len(weight) % (channels // weight.shape[1]) else f'weight of {channels} input channels'
        return self.map.misfit(weight)


def at_work(secret: Map, side: str) -> Map:
    """What is done to a feature map at a point of this side: at a ``back:`` point weights did T, and it is undone."""
    return secret.inverse() if side == 'back' else secret
