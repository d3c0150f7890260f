"""What a stamp says of a sealed file: for whom its secrets are wrapped, and how each of its sections is sealed.

Public throughout, without torch and without keys. :mod:`keyseg_mm.seal` makes and checks what stands here. Every field
is bounded and checked, whoever wrote it, and one that is missing or unknown is refused.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

SEALED, SIGNED = 'sealed', 'signed'
MODES = (SEALED, SIGNED)
MOST_RECIPIENTS = 1000
KINDS = ('key', 'x25519', 'mlkem768-x25519')
TAG_BYTES, MAC_BYTES = 16, 32
CHUNK = 4 * 1024 * 1024  # bytes: threads share large tensors, and what a chunk costs beside its bytes is not seen
_LEAST_CHUNK, _MOST_CHUNK = 2**16, 2**30
_MOST_WRAPPED, _MOST_TAGS = 2048, 2 * 1024 * 1024  # bytes; so many tags are those of 512 GiB in chunks of 4 MiB
_MOST_SHARED, _LONGEST = 65_536, 512

_T = TypeVar('_T')


@dataclass(frozen=True)
class Wrapped:
    """A line of the envelope: the secrets of a file, wrapped for one recipient.

    Attributes:
        id: public id of the recipient.
        kind: of the recipient, one of ``KINDS``.
        data: what the recipient unwraps.

    Raises:
        ValueError: a field is not as it should be.
    """

    id: str
    kind: str
    data: bytes

    def __post_init__(self) -> None:
        _check(isinstance(self.id, str) and bool(re.fullmatch('[a-z0-9]{1,64}', self.id)))
        _check(isinstance(self.kind, str) and self.kind in KINDS)
        _check(isinstance(self.data, bytes) and 0 < len(self.data) <= _MOST_WRAPPED)


@dataclass(frozen=True)
class Seal:
    """How one section of a file is sealed.

    Attributes:
        section: its name: ``'state_dict'``, ``'ema_state_dict'``, ``'optimizer'``.
        mode: ``'sealed'``: the bytes are encrypted. ``'signed'``: they stay, and are authenticated.
        chunk: bytes in a chunk, a power of two from 64 KiB to 1 GiB; the last one of a tensor may be shorter.
        shared: names of tensors that are the very same as another one, the first of them by name.
        tags: 16 bytes for each chunk: of all tensors in the order of their names (those in ``shared`` and stamps left
            out), and of each from its first byte to its last. An empty tensor has no chunk.
        meta: 32 bytes, the MAC of the file's plain meta values; empty for a file without any.
        tag: 32 bytes, the MAC over all the rest.

    Raises:
        ValueError: a field is not as it should be.
    """

    section: str
    mode: str
    chunk: int
    shared: dict[str, str] = field(hash=False)
    tags: bytes = field(repr=False)
    meta: bytes = field(repr=False)
    tag: bytes = field(repr=False)

    def __post_init__(self) -> None:
        _check(isinstance(self.section, str) and bool(re.fullmatch('[A-Za-z0-9_.:/-]{1,128}', self.section)))
        _check(isinstance(self.mode, str) and self.mode in MODES)
        _check(type(self.chunk) is int and _LEAST_CHUNK <= self.chunk <= _MOST_CHUNK)
        _check(self.chunk & (self.chunk - 1) == 0)
        _check(isinstance(self.shared, dict) and len(self.shared) <= _MOST_SHARED)
        _check(all(_is_name(other) and _is_name(first) and first < other for other, first in self.shared.items()))
        _check(not self.shared.keys() & set(self.shared.values()))
        _check(isinstance(self.tags, bytes) and len(self.tags) % TAG_BYTES == 0 and len(self.tags) <= _MOST_TAGS)
        _check(isinstance(self.meta, bytes) and len(self.meta) in (0, MAC_BYTES))
        _check(isinstance(self.tag, bytes) and len(self.tag) == MAC_BYTES)


def write_wrapped(wrapped: Wrapped) -> dict[str, Any]:
    """A line of the envelope as JSON has it, bytes in base64 (RFC 4648)."""
    return _write(wrapped)


def read_wrapped(value: object) -> Wrapped:
    """A line of the envelope from its JSON.

    Raises:
        ValueError: it is damaged.
    """
    return _read(Wrapped, value, _MOST_WRAPPED)


def write_seal(seal: Seal) -> dict[str, Any]:
    """A seal as JSON has it, bytes in base64 (RFC 4648)."""
    return _write(seal)


def read_seal(value: object) -> Seal:
    """A seal from its JSON.

    Raises:
        ValueError: it is damaged.
    """
    return _read(Seal, value, _MOST_TAGS)


def _write(record: Any) -> dict[str, Any]:
    values = {f.name: getattr(record, f.name) for f in fields(record)}
    return {name: _text(value) if isinstance(value, bytes) else value for name, value in values.items()}


def _read(kind: type[_T], value: object, most: int) -> _T:
    _check(isinstance(value, Mapping))
    row: dict[str, Any] = dict(value)  # type: ignore[call-overload]
    known = {f.name: f.type for f in fields(kind)}  # type: ignore[arg-type]
    _check(row.keys() == known.keys())
    return kind(**{name: _bytes(row[name], most) if known[name] == 'bytes' else row[name] for name in known})


def _text(value: bytes) -> str:
    return base64.b64encode(value).decode('ascii')


def _bytes(text: object, most: int) -> bytes:
    """Bytes of their only base64 form: two texts never stand for the same bytes."""
    if not isinstance(text, str) or len(text) > 4 * (most + 2) // 3:
        raise ValueError
    found = base64.b64decode(text.encode('ascii'), validate=True)
    _check(_text(found) == text)
    return found


def _is_name(value: object) -> bool:
    """A name that can be shown: no surrogates, and nothing that steers a terminal."""
    return isinstance(value, str) and 0 < len(value) <= _LONGEST and value.isprintable()


def _check(right: bool) -> None:
    if not right:
        raise ValueError('a seal or an envelope is damaged')
