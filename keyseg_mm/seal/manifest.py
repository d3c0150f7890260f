"""One tag by HMAC-SHA256 (RFC 2104) over all that a seal covers: list of tensors, tags of their chunks, stamp, meta."""

from __future__ import annotations

import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC

from keyseg_mm.envelope import TAG_BYTES, Seal
from keyseg_mm.errors import IntegrityError
from keyseg_mm.seal.chunks import Buffer, chunks_of, count_of, length_of
from keyseg_mm.seal.meta import Content, canonical, check_meta

_MANIFEST = 'keyseg_mm/manifest/v1'
_FLOATS = {'float32': 4, 'float64': 8, 'float16': 2, 'bfloat16': 2}  # bytes of a value
COPY = (
    'take a copy from where it was made. To average, cast, resize or pick weights, open the file first: keyseg unlock, '
    'or keyseg_mm.load'
)


@dataclass(frozen=True)
class Around:
    """What is authenticated beside the tensors.

    Attributes:
        head: the stamp's bytes without its seals.
        public: names of the stamps of parts, which stay readable, and their bytes in hex.
        shared: see :class:`keyseg_mm.envelope.Seal`; where it is opened, the seal's own counts.
        meta: of the file.
    """

    head: bytes
    public: tuple[tuple[str, str], ...] = ()
    shared: Mapping[str, str] = field(default_factory=dict)
    meta: Mapping[str, Any] | None = None


def manifest_tag(content: Content, seal: Seal, buffers: Sequence[Buffer], around: Around) -> bytes:
    """The tag over everything, each part after its length."""
    return _tag_over(content, seal, [_row(b.name, b.dtype, b.shape, len(b.data), seal) for b in buffers], around)


def _row(name: str, dtype: str, shape: tuple[int, ...], size: int, seal: Seal) -> list[Any]:
    return [name, dtype, list(shape), chunks_of(size, seal.chunk)]


def _tag_over(content: Content, seal: Seal, rows: list[list[Any]], around: Around) -> bytes:
    said = canonical([_MANIFEST, seal.section, seal.mode, seal.chunk, rows, seal.shared, sorted(around.public)])
    mac = HMAC(content.subkey(_MANIFEST, [seal.section], b''), SHA256())
    for part in (said, around.head, seal.tags, seal.meta):
        mac.update(length_of(part))
        mac.update(part)
    return mac.finalize()


def check_seal(content: Content, seal: Seal, buffers: Sequence[Buffer], around: Around) -> None:
    """Make sure that a section is what was sealed, but for the bytes of its chunks.

    Raises:
        IntegrityError: it is not.
    """
    check_meta(content, seal, around.meta)
    if not hmac.compare_digest(manifest_tag(content, seal, buffers, around), seal.tag):
        raise IntegrityError(
            f'{seal.section} was altered after it was sealed: {_what(content, seal, buffers, around)}; {COPY}'
        )


def _what(content: Content, seal: Seal, buffers: Sequence[Buffer], around: Around) -> str:
    """What was done to a section, as far as it can be told: tools cast, drop and resize tensors."""
    for dtype, size in _FLOATS.items():
        for scalar, width in ((dtype, size), ('int64', 8)):  # counters are cast too, by some
            rows = []
            for b in buffers:
                kind, wide = (dtype, size) if b.shape or b.dtype not in _FLOATS else (scalar, width)
                same = b.dtype not in _FLOATS
                length = len(b.data) if same else prod(b.shape) * wide
                rows.append(_row(b.name, b.dtype if same else kind, b.shape, length, seal))
            if hmac.compare_digest(_tag_over(content, seal, rows, around), seal.tag):
                return f'its tensors were {dtype} then, and were cast'
    now, then = count_of(buffers, seal.chunk), len(seal.tags) // TAG_BYTES
    if now != then:
        return f'it holds {now} chunks of tensors, and held {then}: some were left out, added, resized or cast'
    return 'its tensors, its stamp or its seal do not fit together'
