"""The plan of a protection and its public stamp.

The stamp says what was done to a model: format version, key id, salt, points and transforms, and, where it was locked,
which weights carry which transform, or which tensors are encrypted themselves. A keyed MAC over it and the weights lets
the key's holder see whether the file was altered. It travels in the state_dict as one uint8 tensor of JSON, so that the
Runner, ``init_model``, EMA, ``.pth`` and ``.safetensors`` all carry it. Its entry is named after the key id, so that a
host without this package, which knows only that it met an unexpected key, tells its user which key the model wants.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from keyseg_mm.errors import KeysegError, StampError
from keyseg_mm.maps import normal_form
from keyseg_mm.model.points import Point
from keyseg_mm.weights import weight_form

FORMAT = 'keyseg_mm stamp'
# A stamp has the lowest version that can say what it has to: a release that does not know it says so.
POINTS_VERSION, TENSORS_VERSION = 1, 2
STAMP_PREFIX = 'keyseg_stamp'
_NAME = STAMP_PREFIX + '_protected_model_needs_key_{}'
SALT_BYTES = 16
DAMAGED = 'the stamp in this checkpoint is damaged; restore the file from a copy'
PATCH_FORMAT = 'keyseg_mm patch stamp'  # of keyseg_mm.patchplan: a model that takes encrypted images
_TAKES_ENCRYPTED_IMAGES = (
    'this checkpoint takes encrypted images (its patch embedding is locked, see `keyseg show`): it runs with its plain '
    'config, without a key, on images encrypted with `keyseg encrypt-image` or by keyseg_mm.EncryptPatches in the '
    'pipeline; `keyseg unlock` makes the plain model of it'
)


class Stamped:
    """What travels in a state_dict as one uint8 tensor of JSON."""

    def to_json(self) -> str:
        """The stamp as text; the same plan always gives the same text."""
        raise NotImplementedError

    def to_tensor(self) -> Tensor:
        """The stamp as a one-dimensional uint8 tensor."""
        return torch.tensor(list(self.to_json().encode('utf-8')), dtype=torch.uint8)


def text_of(tensor: Any) -> str:
    """The text of a stamp's tensor; it may be anything, whoever reads it checks.

    Raises:
        StampError: no tensor of text.
    """
    try:
        if not isinstance(tensor, Tensor) or tensor.dtype != torch.uint8 or tensor.dim() != 1:
            raise ValueError
        return bytes(tensor.cpu().tolist()).decode('utf-8')
    except ValueError:
        raise StampError(DAMAGED) from None


@dataclass(frozen=True)
class Entry:
    """One encryption point of a plan.

    Attributes:
        point: where.
        channels: how many.
        transform: in normal form.
        weights: names in the state_dict of the weights whose input channels (dimension 1) carry the transform, where
            the model was locked. Empty where it was trained with the key: the model has to tell then.
    """

    point: str
    channels: int
    transform: dict[str, Any] = field(hash=False)
    weights: tuple[str, ...] = field(default=(), compare=False)

    def __str__(self) -> str:
        return f'{self.point} ({self.channels} channels, {describe(self.transform)})'


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a plan whose values are encrypted themselves: it has to be unlocked before the model can run.

    Attributes:
        names: in the state_dict, of this one tensor; the first is the one that its order is derived for.
        count: how many of its values are moved: all, or those of the largest magnitude.
        transform: in normal form.
    """

    names: tuple[str, ...]
    count: int
    transform: dict[str, Any] = field(hash=False)

    def __str__(self) -> str:
        return f'{self.names[0]} ({self.count} values, {describe(self.transform)})'


@dataclass(frozen=True)
class Plan(Stamped):
    """What is encrypted, where and with whose key; all public.

    Attributes:
        key_id: public id of the key.
        salt: public, fresh for each protected model, so that one key gives each model tables of its own.
        entries: the points.
        tensors: the tensors whose values are encrypted themselves. A plan has points or tensors, not both.
        mac: keyed MAC over the rest of the stamp and the weights it came with, in hex; empty before it is made.
    """

    key_id: str
    salt: bytes
    entries: tuple[Entry, ...]
    tensors: tuple[TensorEntry, ...] = ()
    mac: str = field(default='', compare=False)

    @property
    def stamp_name(self) -> str:
        """Name of the stamp's entry in a state_dict, without a module prefix."""
        return _NAME.format(self.key_id)

    @property
    def places(self) -> int:
        """At how many places the model carries its key."""
        return len(self.entries) + len(self.tensors)

    def to_json(self) -> str:
        points: list[dict[str, Any]] = []
        for e in self.entries:
            points.append({'point': e.point, 'channels': e.channels, 'transform': e.transform})
            if e.weights:
                points[-1]['weights'] = list(e.weights)
        version = TENSORS_VERSION if self.tensors else POINTS_VERSION
        document: dict[str, Any] = {'format': FORMAT, 'version': version, 'key_id': self.key_id}
        document.update(salt=self.salt.hex(), points=points)
        if self.tensors:
            document['tensors'] = [
                {'names': list(t.names), 'count': t.count, 'transform': t.transform} for t in self.tensors
            ]
        if self.mac:
            document['mac'] = self.mac
        return json.dumps(document, separators=(',', ':'))

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Read a stamp.

        Raises:
            StampError: damaged, or of another version.
        """
        try:
            document = json.loads(text)
            if document['format'] == PATCH_FORMAT:
                raise StampError(_TAKES_ENCRYPTED_IMAGES)
            if document['format'] != FORMAT:
                raise ValueError
            if document['version'] not in (POINTS_VERSION, TENSORS_VERSION):
                raise StampError(
                    f'this stamp has version {document["version"]!r}; this release reads up to {TENSORS_VERSION}: '
                    'install a newer keyseg_mm'
                )
            entries = tuple(_entry(point) for point in document['points'])
            of_tensors = document['version'] == TENSORS_VERSION
            tensors = tuple(_tensor_entry(tensor) for tensor in document['tensors']) if of_tensors else ()
            salt = bytes.fromhex(document['salt'])
            key_id, mac = document['key_id'], document.get('mac', '')
            bytes.fromhex(mac)
            if len(salt) != SALT_BYTES or not isinstance(key_id, str) or bool(entries) == bool(tensors):
                raise ValueError
        except StampError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, KeysegError):
            raise StampError(DAMAGED) from None
        return cls(key_id, salt, entries, tensors, mac)

    @classmethod
    def from_tensor(cls, tensor: Tensor) -> Plan:
        """Read a stamp from its tensor."""
        return cls.from_json(text_of(tensor))

    def differences(self, other: Plan) -> list[str]:
        """What other's points and transforms have more, less or otherwise than this plan's, in words."""
        mine, theirs = ({e.point: e for e in plan.entries} for plan in (self, other))
        found = [f'{mine[p]} here only' for p in mine if p not in theirs]
        found += [f'{theirs[p]} there only' for p in theirs if p not in mine]
        return found + [f'{mine[p]} here, {theirs[p]} there' for p in mine if p in theirs and mine[p] != theirs[p]]


def _entry(point: dict[str, Any]) -> Entry:
    """An entry from its JSON; raises whatever comes for a damaged one."""
    weights = point.get('weights', [])
    if not isinstance(weights, list) or not all(isinstance(name, str) for name in weights):
        raise ValueError
    place = str(Point.parse(point['point']))
    return Entry(place, int(point['channels']), normal_form(point['transform']), tuple(weights))


def _tensor_entry(tensor: dict[str, Any]) -> TensorEntry:
    """A tensor's entry from its JSON; raises whatever comes for a damaged one."""
    names, count = tensor['names'], tensor['count']
    if not names or not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError
    if type(count) is not int or count < 2:  # a single value has no other place to go
        raise ValueError
    return TensorEntry(tuple(names), count, weight_form(tensor['transform']))


def describe(transform: Mapping[str, Any]) -> str:
    """A transform in normal form as a reader wants it: ``ChannelRotation(block=16)``."""
    params = ', '.join(f'{k}={v}' for k, v in transform.items() if k != 'type')
    return f'{transform["type"]}({params})' if params else str(transform['type'])


def is_stamp(name: str) -> bool:
    """Whether a name of a state_dict is that of a stamp, of whatever module."""
    return name.rpartition('.')[2].startswith(STAMP_PREFIX)


def stamp_names(names: Iterable[str], prefix: str = '') -> list[str]:
    """Those names of a state_dict that are stamps of the module at ``prefix``."""
    return [name for name in names if name.startswith(prefix + STAMP_PREFIX)]


def stamps_of(state_dict: Mapping[str, Any]) -> dict[str, Plan]:
    """All stamps in a state_dict, by the prefix of the module they belong to (``''`` for the model itself).

    Raises:
        StampError: one is damaged, is not the one that its name says, or a module has two.
    """
    found: dict[str, Plan] = {}
    for name, value in state_dict.items():
        if is_stamp(name):
            prefix, _, last = name.rpartition('.')
            plan = Plan.from_tensor(value)
            if plan.stamp_name != last or prefix in found:
                raise StampError(DAMAGED)
            found[prefix] = plan
    return found
