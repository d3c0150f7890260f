"""The stamp: the public record of what was done to a model, one format for every scheme.

It names the key by its public id, the salt, and in its entries what is encrypted and how: feature maps, parameters,
patch embeddings, images; in its envelope, secrets wrapped for each recipient; and how the file was sealed, which says
to whoever opens it whether it was altered. It travels in the state_dict as one uint8 tensor of JSON, so that the
Runner, ``init_model``, EMA, ``.pth`` and ``.safetensors`` all carry it. That tensor's name tells a host without this
package, which only knows that it met an unexpected key, which key the model needs.

Reading a stamp takes neither a key nor torch. All that is read is bounded and checked, whoever wrote it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, TypeVar

from keyseg_mm.entries import (
    SALT_BYTES,
    EmbeddingEntry,
    Entry,
    ImageEntry,
    MapEntry,
    TensorEntry,
    parse_salt,
    places_of,
    read_entry,
    write_entry,
)
from keyseg_mm.envelope import (
    MOST_RECIPIENTS,
    SEALED,
    Seal,
    Wrapped,
    read_seal,
    read_wrapped,
    write_seal,
    write_wrapped,
)
from keyseg_mm.errors import PointError, StampError

__all__ = [
    'SALT_BYTES',
    'Stamp',
    'below',
    'fresh_salt',
    'is_stamp',
    'parse_salt',
    'stamp_names',
    'stamp_of_value',
    'stamps_of',
]

FORMAT, VERSION = 'keyseg_mm stamp', 1
STAMP_PREFIX = 'keyseg_stamp'
DAMAGED = (
    'the stamp in this checkpoint is damaged; restore the file from a copy. It is text, of which no average can be '
    'taken: let tools that compute with tensors leave out those named keyseg_stamp...'
)
_NEEDS_KEY = STAMP_PREFIX + '_protected_model_needs_key_'
_TAKES_IMAGES = STAMP_PREFIX + '_model_takes_images_encrypted_with_key_'

# The largest stamp that a model of today needs is a thirtieth of this: whoever asks for more is up to something.
LARGEST = 4 * 1024 * 1024  # bytes
_MOST_ENTRIES = 20_000

_E = TypeVar('_E', bound=Entry)


@dataclass(frozen=True)
class Stamp:
    """What was done to a model, and with whose key; all public.

    Attributes:
        key_id: public id of the key.
        salt: public, fresh for each protected model, so that one key gives each model tables of its own.
        entries: what is encrypted. Feature maps and images go together; parameters and patch embeddings stand alone.
        recipients: the envelope, a line for each; empty where only the holder of the key is meant, as in memory.
        commitment: what the wrapped secrets must come to, 64 hex digits, so that all recipients open the same model;
            empty without an envelope.
        seal: how the section of the file that the stamp came with is sealed; None in memory.
        fingerprint: how strong a licensee's fingerprint the weights carry, see :mod:`keyseg_mm.tracing`; 0 for none.
    """

    key_id: str
    salt: bytes
    entries: tuple[Entry, ...]
    recipients: tuple[Wrapped, ...] = field(default=(), compare=False)
    commitment: str = field(default='', compare=False)
    seal: Seal | None = field(default=None, compare=False)
    fingerprint: float = field(default=0.0, compare=False)

    @property
    def name(self) -> str:
        """Name of the stamp's entry in a state_dict, without a module prefix."""
        sealed = self.seal is not None and self.seal.mode == SEALED
        needs_key = self.maps or self.tensors or not self.entries or sealed
        return (_NEEDS_KEY if needs_key else _TAKES_IMAGES) + self.key_id

    @property
    def maps(self) -> tuple[MapEntry, ...]:
        """The encrypted feature maps."""
        return self._of(MapEntry)

    @property
    def tensors(self) -> tuple[TensorEntry, ...]:
        """The encrypted parameters."""
        return self._of(TensorEntry)

    @property
    def embeddings(self) -> tuple[EmbeddingEntry, ...]:
        """The patch embeddings that read encrypted images."""
        return self._of(EmbeddingEntry)

    @property
    def images(self) -> tuple[ImageEntry, ...]:
        """The encryptions of images that the model was trained with."""
        return self._of(ImageEntry)

    @property
    def key_ids(self) -> tuple[str, ...]:
        """Public ids of whoever can open the model."""
        return tuple(line.id for line in self.recipients) or (self.key_id,)

    @property
    def is_carried(self) -> bool:
        """Whether the stamp tells which weights carry each map, as that of a locked model does."""
        return all(entry.weights for entry in self.maps)

    def _of(self, kind: type[_E]) -> tuple[_E, ...]:
        return tuple(entry for entry in self.entries if isinstance(entry, kind))

    def to_json(self) -> str:
        """The stamp as text; the same stamp always gives the same text."""
        document: dict[str, Any] = {'format': FORMAT, 'version': VERSION, 'key_id': self.key_id}
        document['salt'] = self.salt.hex()
        document['entries'] = [write_entry(entry) for entry in self.entries]
        if self.fingerprint:
            document['fingerprint'] = self.fingerprint
        if self.recipients:
            document['recipients'] = [write_wrapped(line) for line in self.recipients]
            document['commitment'] = self.commitment
        if self.seal:
            document['seal'] = write_seal(self.seal)
        return json.dumps(document, separators=(',', ':'))

    def to_bytes(self) -> bytes:
        """:meth:`to_json` in UTF-8."""
        return self.to_json().encode('utf-8')

    @classmethod
    def from_bytes(cls, content: bytes) -> Stamp:
        """Read a stamp.

        Raises:
            StampError: damaged, too large, or of another version.
        """
        if len(content) > LARGEST:
            raise StampError(DAMAGED)
        return _parse(bytes(content).rstrip(b' '))

    def differences(self, other: Stamp) -> list[str]:
        """What other's feature maps have more, less or otherwise than this stamp's, in words."""
        mine, theirs = ({entry.point: entry for entry in stamp.maps} for stamp in (self, other))
        found = [f'{mine[p]} here only' for p in mine if p not in theirs]
        found += [f'{theirs[p]} there only' for p in theirs if p not in mine]
        return found + [f'{mine[p]} here, {theirs[p]} there' for p in mine if p in theirs and mine[p] != theirs[p]]


def stamp_of_value(value: Any) -> Stamp:
    """The stamp in a state_dict's value, whatever that is.

    Raises:
        StampError: it is no one-dimensional tensor of a stamp's bytes.
    """
    try:
        if value.dim() != 1 or value.numel() > LARGEST:
            raise ValueError
        content = _bytes(value.detach().cpu()).numpy().tobytes()
    except (AttributeError, ValueError, TypeError, RuntimeError):  # meta and sparse ones too
        raise StampError(DAMAGED) from None
    return Stamp.from_bytes(content)


def _bytes(value: Any) -> Any:
    """The bytes in a tensor; a tool that casts all tensors of a file casts its stamp too, and no dtype loses any."""
    if str(value.dtype) == 'torch.uint8':
        return value
    numbers, found = value.double(), value.double().byte()
    return found if bool((numbers == found).all()) else _refuse()


def is_stamp(name: str) -> bool:
    """Whether a name of a state_dict is that of a stamp, of whatever module."""
    return name.rpartition('.')[2].startswith(STAMP_PREFIX)


def stamp_names(names: Iterable[str], prefix: str = '') -> list[str]:
    """Those names of a state_dict that are stamps of the module at ``prefix``."""
    return [name for name in names if name.startswith(prefix + STAMP_PREFIX)]


def stamps_of(state_dict: Mapping[str, Any]) -> dict[str, Stamp]:
    """All stamps in a state_dict, by the prefix of the module they belong to (``''`` for the model itself).

    Raises:
        StampError: one is damaged, is not the one that its name says, or a module has two.
    """
    found: dict[str, Stamp] = {}
    left = 4 * LARGEST  # bytes of all together
    for name, value in state_dict.items():
        if is_stamp(name):
            prefix, _, last = name.rpartition('.')
            stamp = stamp_of_value(value)
            left -= value.numel()
            if stamp.name != last or prefix in found or left < 0:
                raise StampError(DAMAGED)
            found[prefix] = stamp
    return found


def below(tensors: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The entries of the module at a prefix, by their names in it."""
    return {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}


def padded(stamp: Stamp, room: int) -> bytes:
    """A stamp's bytes with blanks at the end; see :func:`keyseg_mm.bind.stamp_tensor`."""
    content = stamp.to_bytes()
    return content.ljust(-(-(len(content) + room // 2) // room) * room, b' ')


def fresh_salt(salt: bytes | None = None) -> bytes:
    """A salt that was given, checked, or a random one.

    Raises:
        StampError: it has another length.
    """
    if salt is not None and len(salt) != SALT_BYTES:
        raise StampError(f'a salt is {SALT_BYTES} bytes ({2 * SALT_BYTES} hex digits)')
    return salt or os.urandom(SALT_BYTES)


@lru_cache(maxsize=8)
def _parse(content: bytes) -> Stamp:
    """A stamp from its bytes; a file may show one in many places."""
    try:
        document = json.loads(content.decode('utf-8'), parse_constant=_refuse)
        if document['format'] != FORMAT or type(document['version']) is not int:
            raise ValueError
        if document['version'] != VERSION:
            raise StampError(
                f'this stamp has version {document["version"]!r:.20}; this release reads version {VERSION}: '
                'install a newer keyseg_mm'
            )
        stamp = _stamp(document)
        if stamp.to_bytes() != content:  # one way to write it: whatever was changed shows
            raise ValueError
        return stamp
    except StampError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, PointError):
        raise StampError(DAMAGED) from None


def _stamp(document: dict[str, Any]) -> Stamp:
    key_id, salt, rows = document.pop('key_id'), document.pop('salt'), document.pop('entries')
    commitment, lines = document.pop('commitment', ''), document.pop('recipients', [])
    seal, fingerprint = document.pop('seal', None), document.pop('fingerprint', None)
    if fingerprint is not None and not (type(fingerprint) is float and 0 < fingerprint < 1):
        raise ValueError
    if set(document) != {'format', 'version'} or not all(isinstance(found, list) for found in (rows, lines)):
        raise ValueError
    envelope = tuple(map(read_wrapped, lines[: MOST_RECIPIENTS + 1]))
    if len(rows) > _MOST_ENTRIES or len(envelope) > MOST_RECIPIENTS or bool(commitment) != bool(envelope):
        raise ValueError
    forms = {'[a-z0-9]{1,64}': key_id, '([0-9a-f]{64})?': commitment, f'[0-9a-f]{{{2 * SALT_BYTES}}}': salt}
    if not all(re.fullmatch(form, text) for form, text in forms.items()):
        raise ValueError
    entries = tuple(map(read_entry, rows))
    read = None if seal is None else read_seal(seal)
    stamp = Stamp(key_id, bytes.fromhex(salt), entries, envelope, commitment, read, fingerprint or 0.0)
    if (stamp.seal and not envelope) or not (entries or stamp.seal) or (envelope and key_id != envelope[0].id):
        raise ValueError  # a seal's key is in the envelope; the first recipient names the stamp
    kinds = {entry.scheme for entry in stamp.entries}
    places = [place for entry in stamp.entries for place in places_of(entry)]
    ciphers = {(entry.patch, entry.permute, entry.negate) for entry in stamp.embeddings}
    mixed = len(kinds) > 1 and kinds != {MapEntry.scheme, ImageEntry.scheme}
    if mixed or len(set(places)) != len(places) or len(ciphers) > 1:
        raise ValueError
    return stamp


def _refuse(_: object = None) -> Any:
    raise ValueError
