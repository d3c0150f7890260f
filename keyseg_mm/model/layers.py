"""Which layers take an ``in:`` point, and into which of their weights an orthogonal channel map can be absorbed.

A layer that is linear in its input's channels computes ``W x``, and ``(W T^-1)(T x)`` is the same. One entry in
:data:`KINDS` for each kind of layer, by the names of its classes; other layers take no ``in:`` point. What a layer is
called says what it computes only where nobody has overridden that (:func:`is_stock`); any other has to be tried.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Kind:
    """A kind of layer.

    Attributes:
        weights: names in the layer of all weights whose dimension 1 is that of the input's channels.
    """

    weights: tuple[str, ...] = ('weight',)


_DEFORMABLE = Kind()
# The packed ones compute their offsets from the same input.
_DEFORMABLE_PACK = Kind(('weight', 'conv_offset.weight'))

KINDS: dict[str, Kind] = {
    'DeformConv2d': _DEFORMABLE,  # mmcv and torchvision
    'ModulatedDeformConv2d': _DEFORMABLE,
    'DeformConv2dPack': _DEFORMABLE_PACK,
    'ModulatedDeformConv2dPack': _DEFORMABLE_PACK,
    'Conv2d': Kind(),
    'Linear': Kind(),
}
_MAKERS = ('torch', 'torchvision', 'mmcv')  # whose layers of these names compute what is said of them
_COMPUTES = {'forward', '_conv_forward', '__call__'}
GATED = '_keyseg_plain_class'  # in a class that runtime.gates made: the one that it was made of


def kind_of(module: nn.Module) -> Kind | None:
    """A layer's kind, by the nearest of its classes that has one; None where it takes no ``in:`` point."""
    return next((KINDS[cls.__name__] for cls in type(module).__mro__ if cls.__name__ in KINDS), None)


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


def is_grouped(module: nn.Module) -> bool:
    """Whether parts of the input's channels are kept apart, so that a map may not mix them."""
    deformable = getattr(module, 'deform_groups', None) or getattr(module, 'deformable_groups', None) or 1
    return int(getattr(module, 'groups', 1)) > 1 or int(deformable) > 1


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

    def of(self, layer: nn.Module) -> tuple[str, ...]:
        """The names in the state_dict of the weights that absorb a map of this layer's input."""
        kind = kind_of(layer)
        parameters = [_parameter(layer, name) for name in kind.weights] if kind else []
        return tuple(name for p in parameters if p is not None for name in self._names[id(p)])

    def why_not(self, layer: nn.Module, channels: int) -> str:
        """Why a map of this layer's input cannot be absorbed by its weights; empty where it can, if it is linear.

        Args:
            layer: a module of the model.
            channels: of its input.
        """
        kind = kind_of(layer)
        if kind is None:
            return f'a {type(layer).__name__} is not known to be linear in its input'
        if is_grouped(layer):
            return 'grouped: its channels are kept apart, and the map would mix them'
        parameters = [_parameter(layer, name) for name in kind.weights]
        if any(p is None for p in parameters):
            return 'its weight is computed from other tensors (spectral norm, weight norm or the like)'
        if any(len(self._owners[id(p)]) > 1 for p in parameters):
            return 'its weight is shared with another layer, which reads another map'
        if any(p is not None and (p.dim() < 2 or p.shape[1] != channels) for p in parameters):
            return f'its weight does not have the {channels} channels of its input in dimension 1'
        return ''


def _parameter(layer: nn.Module, name: str) -> nn.Parameter | None:
    owner, _, last = name.rpartition('.')
    return layer.get_submodule(owner)._parameters.get(last)
