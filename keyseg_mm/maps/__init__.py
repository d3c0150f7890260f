"""Secret invertible maps of feature maps, tensors and pixels, and how many of them there are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from keyseg_mm.errors import TransformError
from keyseg_mm.maps.base import ChannelMap, Map
from keyseg_mm.maps.channels import ChannelPermutation, ChannelRotation, SignedChannelPermutation

__all__ = [
    'CHANNEL_MAPS',
    'TRANSFORMS',
    'ChannelMap',
    'ChannelPermutation',
    'ChannelRotation',
    'Map',
    'SignedChannelPermutation',
    'normal_form',
    'register',
]

#: The kinds of maps, by the name that configs and stamps call a transform.
TRANSFORMS: dict[str, type[Map]] = {
    kind.__name__: kind for kind in (ChannelPermutation, SignedChannelPermutation, ChannelRotation)
}
#: Those that are the same map of the channels everywhere, as locking needs it.
CHANNEL_MAPS = tuple(TRANSFORMS)
_Class = TypeVar('_Class', bound=type[Map])


def register(cls: _Class) -> _Class:
    """Class decorator: make a kind of map known by its name."""
    TRANSFORMS[cls.__name__] = cls
    return cls


def normal_form(transform: str | Mapping[str, Any], table: Mapping[str, Any] = TRANSFORMS) -> dict[str, Any]:
    """A transform as configs write it, checked: ``'NAME'`` or ``dict(type='NAME', ...)`` to the latter.

    Raises:
        TransformError: unknown name, unknown parameter, or a bad value.
    """
    spec = {'type': transform} if isinstance(transform, str) else dict(transform or {})
    name: Any = spec.pop('type', None)
    if name not in table:
        raise TransformError(f'no transform {name!r}; there are {", ".join(table)}')
    if 'groups' in spec:
        raise TransformError(f'{name}: groups are those of the layer where a transform works, and not to be chosen')
    table[name].check(**spec)
    return {'type': name, **spec}
