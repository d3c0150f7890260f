"""The lines of a stamp: one kind of entry for each scheme, and how each is read and written.

Public throughout, without torch. Every field is bounded and checked as it is read, whoever wrote it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, ClassVar

from keyseg_mm.errors import StampError
from keyseg_mm.model.points import Point

SALT_BYTES = 16
# Bounds of what is read, far above what models have: whoever asks for more would have a reader's memory.
_MOST_NAMES, _LONGEST, _MOST_CHANNELS, _MOST_VALUES = 4096, 512, 2**20, 2**36
_MOST_DIMS, _MOST_MAPS = 8, 1024


class Entry:
    """A line of a stamp; one dataclass for each scheme."""

    scheme: ClassVar[str]


@dataclass(frozen=True)
class MapEntry(Entry):
    """A feature map that is encrypted.

    Attributes:
        point: where, as text.
        channels: how many.
        transform: the kind of map, in normal form.
        weights: names in the state_dict of the weights that carry the map. Empty where they were not known: the model
            has to tell then.
        along: the dimension of these weights that carries it: 1, or 0 for a transposed convolution's and at a ``back:``
            point.
        dim, runs, forms: of the site, see :class:`keyseg_mm.model.sites.Site`, so that nobody has to run the model to
            find it again.
    """

    scheme: ClassVar[str] = 'features'
    point: str
    channels: int
    transform: dict[str, Any] = field(hash=False)
    weights: tuple[str, ...] = field(default=(), compare=False)
    along: int = field(default=1, compare=False)
    dim: int = field(default=1, compare=False)
    runs: tuple[str, ...] = field(default=('test', 'train'), compare=False)
    forms: tuple[tuple[int, int | None], ...] = field(default=(), compare=False)

    def __str__(self) -> str:
        return f'{self.point} ({self.channels} channels, {describe(self.transform)})'


@dataclass(frozen=True)
class TensorEntry(Entry):
    """A tensor whose values are in a secret order: it has to be opened before the model can run.

    Attributes:
        names: in the state_dict, of this one tensor; the first is the one that its order is derived for.
        count: how many of its values are moved: all, or those of the largest magnitude.
        transform: the kind of order, in normal form.
    """

    scheme: ClassVar[str] = 'parameters'
    names: tuple[str, ...]
    count: int
    transform: dict[str, Any] = field(hash=False)

    def __str__(self) -> str:
        return f'{self.names[0]} ({self.count} values, {describe(self.transform)})'


@dataclass(frozen=True)
class EmbeddingEntry(Entry):
    """A patch embedding that reads encrypted images.

    Attributes:
        weight: name in the state_dict of its weight (D, 3, patch, patch).
        offset: name of the tensor (..., D) that takes the constant that the encryption adds; empty where there is none.
        skip: how many of its rows, those of tokens that are no patches, do not take it.
        patch: side of a block, in pixels.
        permute, negate: see :meth:`keyseg_mm.maps.pixels.BlockTables.derive_patch`.
        order: in which order the model's channels come, ``'rgb'`` or ``'bgr'``.
        mean, std: of the model's normalisation, in that order.
    """

    scheme: ClassVar[str] = 'patches'
    weight: str
    offset: str
    skip: int
    patch: int
    permute: str
    negate: bool
    order: str
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class ImageEntry(Entry):
    """An encryption of the images that a model was trained on.

    Attributes:
        method: ``'SHF'``, ``'NP'`` or ``'FFX'``.
        block: side of a block, in pixels.
        salt: public, 32 hex digits, so that one key encrypts the images of another model otherwise; or empty.
    """

    scheme: ClassVar[str] = 'images'
    method: str
    block: int
    salt: str = ''

    def __str__(self) -> str:
        return f'{self.method}, block {self.block}, salt {self.salt or "none"}'


ENTRIES: dict[str, type[Entry]] = {cls.scheme: cls for cls in (MapEntry, TensorEntry, EmbeddingEntry, ImageEntry)}


def describe(transform: Mapping[str, Any]) -> str:
    """A transform in normal form as a reader wants it: ``ChannelRotation(block=16)``."""
    params = ', '.join(f'{k}={v}' for k, v in transform.items() if k != 'type')
    return f'{transform["type"]}({params})' if params else str(transform['type'])


def parse_salt(text: object) -> bytes:
    """The salt of a config or a command line.

    Raises:
        StampError: it is not 16 bytes in hex.
    """
    if not isinstance(text, str) or not re.fullmatch(f'[0-9a-fA-F]{{{2 * SALT_BYTES}}}', text):
        raise StampError(f'salt is {2 * SALT_BYTES} hex digits; `keyseg show CHECKPOINT` tells those of a model')
    return bytes.fromhex(text)


def read_entry(row: dict[str, Any]) -> Entry:
    """An entry from its JSON; raises ValueError, KeyError, TypeError or AttributeError for a damaged one."""
    kind = ENTRIES[row.pop('scheme')]
    known = {f.name: f for f in fields(kind)}  # type: ignore[arg-type]
    if set(row) - set(known):
        raise ValueError
    given = {name: row.get(name, f.default) for name, f in known.items()}
    if any(value is MISSING for value in given.values()):
        raise KeyError
    entry = kind(**{name: _CHECKS[name](value) for name, value in given.items()})
    if isinstance(entry, EmbeddingEntry) and entry.permute == 'none' and not entry.negate:
        raise ValueError  # it leaves images as they are
    return entry


def write_entry(entry: Entry) -> dict[str, Any]:
    """An entry as JSON has it, less what is as it is where nothing is said."""
    values = {f.name: getattr(entry, f.name) for f in fields(entry) if getattr(entry, f.name) != f.default}  # type: ignore[arg-type]
    return {'scheme': entry.scheme, **values}


def places_of(entry: Entry) -> tuple[str, ...]:
    """What may be encrypted only once in a stamp; images may be encrypted in several steps, alike too."""
    if isinstance(entry, MapEntry):
        return (entry.point,)
    if isinstance(entry, EmbeddingEntry):
        return (entry.weight,)
    return entry.names if isinstance(entry, TensorEntry) else ()


def _refuse(_: object = None) -> Any:
    raise ValueError


def _text(value: Any) -> str:
    """Text that can be shown: no surrogates, and nothing that steers a terminal."""
    return value if isinstance(value, str) and len(value) <= _LONGEST and value.isprintable() else _refuse()


def _name(value: Any) -> str:
    return _text(value) or _refuse()


def _names(value: Any) -> tuple[str, ...]:
    few = isinstance(value, (list, tuple)) and len(value) <= _MOST_NAMES
    names = tuple(map(_name, value)) if few else _refuse()
    return names if len(set(names)) == len(names) else _refuse()


def _forms(value: Any) -> tuple[tuple[int, int | None], ...]:
    number = _number(0, _MOST_MAPS)
    few = isinstance(value, (list, tuple)) and len(value) <= _MOST_MAPS
    return tuple((number(form), None if at is None else number(at)) for form, at in (value if few else _refuse()))


def _number(low: int, high: int) -> Callable[[Any], int]:
    return lambda value: value if type(value) is int and low <= value <= high else _refuse()


def _one_of(*values: Any) -> Callable[[Any], Any]:
    return lambda value: value if any(value is v or (isinstance(v, str) and value == v) for v in values) else _refuse()


def _salt(value: Any) -> str:
    return str(value) if re.fullmatch(f'([0-9a-f]{{{2 * SALT_BYTES}}})?', value) else str(_refuse())


def _channels(positive: bool) -> Callable[[Any], tuple[float, ...]]:
    def check(value: Any) -> tuple[float, ...]:
        right = len(value) == 3 and all(type(v) in (int, float) and math.isfinite(v) for v in value)
        return tuple(map(float, value)) if right and (not positive or min(value) > 0) else _refuse()

    return check


def _transform(value: Any) -> dict[str, Any]:
    """Name and plain parameters; whether there is such a transform is asked when it is used."""
    if not isinstance(value, dict) or len(value) > 8 or not _name(value.get('type')):
        raise ValueError
    return {
        _name(k): v if isinstance(v, (int, float)) and abs(v) <= _MOST_VALUES else _text(v) for k, v in value.items()
    }


_CHECKS: dict[str, Callable[[Any], Any]] = {
    'point': lambda value: str(Point.parse(_name(value))),
    'channels': _number(1, _MOST_CHANNELS),
    'transform': _transform,
    'weights': _names,
    'along': _number(0, 1),
    'dim': lambda value: _number(-_MOST_DIMS, _MOST_DIMS)(value) or _refuse(),  # 0 counts the images
    'runs': lambda value: _names(value) or _refuse(),
    'forms': _forms,
    'names': lambda value: _names(value) or _refuse(),
    'count': _number(2, _MOST_VALUES),  # a single value has no other place to go
    'weight': _name,
    'offset': _text,
    'skip': _number(0, 2),
    'patch': _number(2, 256),
    'permute': _one_of('all', 'channel', 'none'),
    'negate': _one_of(True, False),
    'order': _one_of('rgb', 'bgr'),
    'mean': _channels(positive=False),
    'std': _channels(positive=True),
    'method': _one_of('SHF', 'NP', 'FFX'),
    'block': _number(1, 64),
    'salt': _salt,
}
