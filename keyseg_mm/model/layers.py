"""Which layers take points, and which of their weights carry an orthogonal channel map there.

A layer that is linear in its input's channels computes ``W x``, and ``(W T^-1)(T x)`` is the same: an ``in:`` point.
One that is linear at its end may give ``T y`` in place of ``y``, by the rows of its last weight: a ``back:`` point. One
entry in :data:`KINDS` for each kind of layer, by the names of its classes; other layers take no such point. What it is
called says what a layer computes only where nobody has overridden that (:func:`is_stock`); any other has to be tried.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Kind:
    """A kind of layer.

    Attributes:
        weights: names in the layer of all weights that read its input.
        along: their dimension that is that of the input's channels.
        rows: names of the weights whose dimension 0 is that of the output's channels, where it takes a ``back:`` point.
        inputs: names of the first arguments of ``forward``, all of which get one map.
        dim: the channel dimension of what enters and leaves.
    """

    weights: tuple[str, ...] = ('weight',)
    along: int = 1
    rows: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ('input',)
    dim: int = 1

    def carriers(self, side: str) -> tuple[str, ...]:
        """The weights that carry the map of a point at this side."""
        return self.rows if side == 'back' else self.weights

    def along_of(self, side: str) -> int:
        """The dimension of these weights that carries the map."""
        return 0 if side == 'back' else self.along


_DEFORMABLE = Kind()
# The packed ones compute their offsets from the same input.
_DEFORMABLE_PACK = Kind(('weight', 'conv_offset.weight'))

KINDS: dict[str, Kind] = {
    'Conv2d': Kind(),
    'ConvTranspose2d': Kind(along=0),
    'Linear': Kind(dim=-1),
    'DeformConv2d': _DEFORMABLE,  # mmcv and torchvision
    'ModulatedDeformConv2d': _DEFORMABLE,
    'DeformConv2dPack': _DEFORMABLE_PACK,
    'ModulatedDeformConv2dPack': _DEFORMABLE_PACK,
    # Queries, keys and values are read by one weight, in self-attention and where others are attended to.
    'MultiheadAttention': Kind(
        ('in_proj_weight',), rows=('out_proj.weight', 'out_proj.bias'), inputs=('query', 'key', 'value'), dim=-1
    ),
    'BEiTAttention': Kind(('qkv.weight',), inputs=('x',), dim=-1),  # mmseg's, which takes that Linear for its weight
}
DEPTHWISE = 'depthwise: each channel is alone in its group, and has no other order'
_MAKERS = ('torch', 'torchvision', 'mmcv', 'mmseg')  # whose layers of these names compute what is said of them
_COMPUTES = {'forward', '_conv_forward', '__call__'}
GATED = '_keyseg_plain_class'  # in a class that runtime.gates made: the one that it was made of


def kind_of(module: nn.Module) -> Kind | None:
    """A layer's kind, by the nearest of its classes that has one; None where it takes no ``in:`` point.

    The host has wrappers of the same names, with the layer inside: these have no such weights.
    """
    kinds = (KINDS[cls.__name__] for cls in type(module).__mro__ if cls.__name__ in KINDS)
    return next((kind for kind in kinds if hasattr(module, kind.weights[0].partition('.')[0])), None)


def is_stock(layer: nn.Module) -> bool:
    """Whether what a layer computes is what one of its kind is known to: no class or instance overrides it."""
    if _COMPUTES & vars(layer).keys():
        return False
    for cls in type(layer).__mro__:
        if GATED in vars(cls):
            continue
        if cls.__name__ in KINDS and cls.__module__.partition('.')[0] in _MAKERS:
            return True
        if _COMPUTES & vars(cls).keys():
            return False
    return False


def plain_class(module: nn.Module) -> type[nn.Module]:
    """A module's class without the gates that it may have."""
    return next((vars(cls)[GATED] for cls in type(module).__mro__ if GATED in vars(cls)), type(module))


def groups_of(module: nn.Module) -> int:
    """How many parts of the input's channels are kept apart, so that a map may not mix them."""
    deformable = getattr(module, 'deform_groups', None) or getattr(module, 'deformable_groups', None) or 1
    return math.lcm(int(getattr(module, 'groups', 1)), int(deformable))


def is_depthwise(module: nn.Module, channels: int) -> bool:
    """Whether a layer keeps each channel of its input apart."""
    return 1 < channels <= groups_of(module)


class WeightIndex:
    """Where the weights of a model's layers are, and which of them several layers share."""

    def __init__(self, model: nn.Module) -> None:
        self._names: dict[int, list[str]] = {}  # every name of a parameter in the state_dict
        self._owners: dict[int, set[int]] = {}  # the modules that hold it
        for prefix, module in model.named_modules(remove_duplicate=False):
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    self._names.setdefault(id(parameter), []).append(f'{prefix}.{name}' if prefix else name)
                    self._owners.setdefault(id(parameter), set()).add(id(module))

    def of(self, layer: nn.Module, side: str) -> tuple[str, ...]:
        """The names in the state_dict of the weights of this layer that carry the map of a point at this side."""
        kind = kind_of(layer)
        parameters = carriers_of(layer, kind, side) if kind else {}
        return tuple(name for p in parameters.values() if p is not None for name in self._names[id(p)])

    def why_not(self, layer: nn.Module, channels: int, side: str) -> str:
        """Why a map cannot be carried by the weights of this layer; empty where it can, if the layer is linear.

        Args:
            layer: a module of the model.
            channels: of the map.
            side: ``in`` or ``back`` for a point of the layer itself, ``out`` for a map that it reads with others.
        """
        kind = kind_of(layer)
        if kind is None or not kind.carriers(side):
            return f'a {type(layer).__name__} is not known to be linear in its {"out" if side == "back" else "in"}put'
        if side == 'in' and is_depthwise(layer, channels):
            return DEPTHWISE
        if side == 'out' and groups_of(layer) > 1:
            return 'grouped: its channels are kept apart, and the map would mix them'
        if side == 'out' and kind.along != 1:
            return f'a {type(layer).__name__} has its input channels elsewhere than other layers'
        parameters = carriers_of(layer, kind, side).values()
        if any(p is None for p in parameters):
            return 'its weight is computed from other tensors (spectral norm, weight norm), or is in several parts'
        if any(len(self._owners[id(p)]) > 1 for p in parameters):
            return 'its weight is shared with another layer, which reads another map'
        if any(p is not None and not _fits(p, channels, kind.along_of(side)) for p in parameters):
            return f'its weight does not have the {channels} channels of this map in dimension {kind.along_of(side)}'
        return ''


def carriers_of(layer: nn.Module, kind: Kind, side: str) -> dict[str, nn.Parameter | None]:
    """The parameters of a layer that carry the map of a point at this side, less biases that it does not have."""
    found = {name: _parameter(layer, name) for name in kind.carriers(side)}
    return {name: p for name, p in found.items() if p is not None or not name.endswith('bias')}


def _fits(weight: nn.Parameter, channels: int, along: int) -> bool:
    """Whether a weight has these channels, or, of an input that it reads in groups, those of one group."""
    size = weight.shape[along] if weight.dim() > along else 0
    return size == channels or (along == 1 and size > 0 and channels % size == 0)


def _parameter(layer: nn.Module, name: str) -> nn.Parameter | None:
    owner, _, last = name.rpartition('.')
    return layer.get_submodule(owner)._parameters.get(last)
