"""The transforms: one file and one entry in :data:`TRANSFORMS` each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from keyseg_mm.errors import TransformError
from keyseg_mm.maps.base import ChannelMap
from keyseg_mm.maps.feature import FeatureTransform
from keyseg_mm.maps.negative import NegativePositive
from keyseg_mm.maps.permutation import ChannelPermutation
from keyseg_mm.maps.rotation import ChannelRotation
from keyseg_mm.maps.shuffle import BlockShuffle
from keyseg_mm.maps.signed import SignedChannelPermutation

TRANSFORMS: dict[str, type[FeatureTransform]] = {
    cls.__name__: cls
    for cls in (ChannelPermutation, SignedChannelPermutation, ChannelRotation, BlockShuffle, NegativePositive)
}
#: Those that are the same map of the channels everywhere, as locking needs it.
CHANNEL_MAPS = tuple(name for name, cls in TRANSFORMS.items() if issubclass(cls, ChannelMap))

__all__ = [
    'CHANNEL_MAPS',
    'TRANSFORMS',
    'BlockShuffle',
    'ChannelMap',
    'ChannelPermutation',
    'ChannelRotation',
    'FeatureTransform',
    'NegativePositive',
    'SignedChannelPermutation',
    'normal_form',
]


def normal_form(transform: str | dict[str, Any], table: Mapping[str, Any] = TRANSFORMS) -> dict[str, Any]:
    """A transform as configs write it, checked: ``'NAME'`` or ``dict(type='NAME', ...)`` to the latter.

    Args:
        transform: the transform.
        table: what there is.

    Raises:
        TransformError: unknown name, unknown parameter, or a bad value.
    """
    spec = {'type': transform} if isinstance(transform, str) else dict(transform or {})
    name: Any = spec.pop('type', None)
    if name not in table:
        raise TransformError(f'no transform {name!r}; there are {", ".join(table)}')
    table[name].check(**spec)
    return {'type': name, **spec}
