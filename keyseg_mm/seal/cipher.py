"""The file cipher, on named buffers of bytes; no torch.

Each chunk of a tensor is encrypted and authenticated in one pass by AES-256-GCM (NIST SP 800-38D), in place or on the
way to where it is wanted, under a key that HKDF-SHA256 (RFC 5869) makes of the content key for this section alone. The
nonce counts the chunks of the section, so none is used twice, as long as **a content key seals a section once**: it is
drawn afresh for every file that is written. A chunk's associated data say which one of which tensor it is.

Over all of it goes one tag by HMAC-SHA256 (RFC 2104): the list of tensors, the tags of their chunks, the stamp. AES-GCM
alone does not commit to its key, since one ciphertext may open under two; that tag does.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from math import prod
from typing import Any, NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import GCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC

from keyseg_mm.envelope import CHUNK, MAC_BYTES, SIGNED, TAG_BYTES, Seal
from keyseg_mm.errors import IntegrityError
from keyseg_mm.seal.meta import Content, canonical, check_meta, meta_mac
from keyseg_mm.threads import in_threads

__all__ = ['CHUNK', 'Around', 'Buffer', 'Content', 'open_buffers', 'retag_buffers', 'seal_buffers']

_SECTION, _CHUNK = 'keyseg_mm/section/v1', 'keyseg_mm/chunk/v1'
_MANIFEST = 'keyseg_mm/manifest/v1'
_NONCE_BYTES, _LENGTH_BYTES = 12, 8
_FLOATS = {'float32': 4, 'float64': 8, 'float16': 2, 'bfloat16': 2}  # bytes of a value
_COPY = (
    'take a copy from where it was made. To average, cast, resize or pick weights, open the file first: keyseg unlock, '
    'or keyseg_mm.load'
)


class Buffer(NamedTuple):
    """A tensor as the cipher sees it.

    Attributes:
        name: in its section; no two have the same.
        dtype: name of the type of its values, as ``'float32'``.
        shape: its sizes.
        data: its bytes, C-contiguous.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: memoryview


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


class _Piece(NamedTuple):
    """A chunk of a buffer, ``place`` (from 0) ``of`` so many; the ``number``-th of its section, from 1."""

    buffer: Buffer
    place: int
    of: int
    number: int
    start: int
    stop: int


@dataclass(frozen=True)
class _Section:
    """A section with its key."""

    name: str
    mode: str
    key: AES256 = field(repr=False)

    @classmethod
    def of(cls, content: Content, name: str, mode: str) -> _Section:
        return cls(name, mode, AES256(content.subkey(_SECTION, [name], b'')))

    def run(self, piece: _Piece, out: memoryview | None, tag: bytes | None = None) -> bytes:
        """Encrypt a chunk, or decrypt it where its tag is given, into ``out``; or authenticate it alone.

        Raises:
            InvalidTag: it does not fit.
        """
        buffer = piece.buffer
        cipher = Cipher(self.key, GCM(piece.number.to_bytes(_NONCE_BYTES, 'big'), tag))
        context: Any = cipher.encryptor() if tag is None else cipher.decryptor()
        said = canonical([_CHUNK, self.name, buffer.name, buffer.dtype, list(buffer.shape), piece.place, piece.of])
        data = buffer.data[piece.start : piece.stop]
        if out is None:
            context.authenticate_additional_data(_length(said) + said)
            context.authenticate_additional_data(data)
        else:
            context.authenticate_additional_data(said)
            context.update_into(data, out[piece.start : piece.stop])
        context.finalize()
        return context.tag if tag is None else tag


def seal_buffers(
    buffers: Iterable[Buffer],
    outs: Mapping[str, memoryview],
    content: Content,
    section: str,
    mode: str,
    chunk: int,
    around: Around,
) -> Seal:
    """Seal a section.

    Args:
        buffers: its tensors, in any order.
        outs: where the ciphertext of each goes, by name; may be where its bytes are. Not used for ``'signed'``.
        content: content key, fresh for this file: it never seals a section of this name again.
        section, mode, chunk: see :class:`keyseg_mm.envelope.Seal`.
        around: what else is authenticated.

    Raises:
        ValueError: a section, mode or chunk that is none, or more chunks than a seal can hold.
    """
    ordered = _ordered(buffers)
    shared = dict(sorted(around.shared.items()))
    seal = Seal(section, mode, chunk, shared, bytes(0), meta_mac(content, around.meta), bytes(MAC_BYTES))
    seal = replace(seal, tags=bytes(TAG_BYTES * _count(ordered, chunk)))  # refused before anything is changed
    keyed, tags = _Section.of(content, section, mode), bytearray(seal.tags)

    def work(piece: _Piece) -> None:
        out = None if mode == SIGNED else outs[piece.buffer.name]
        tags[_tag_of(piece)] = keyed.run(piece, out)

    in_threads(partial(_do, work), _jobs(ordered, chunk))
    seal = replace(seal, tags=bytes(tags))
    return replace(seal, tag=_manifest(content, seal, ordered, around))


def open_buffers(
    buffers: Iterable[Buffer], outs: Mapping[str, memoryview], content: Content, seal: Seal, around: Around
) -> None:
    """Open a section, or check it where it is only signed; ``outs`` are zeroed whole where a chunk fails.

    Args:
        buffers: its tensors, in any order.
        outs: where the plain bytes of each go, by name; may be where its ciphertext is.
        content: content key.
        seal: of the section.
        around: what else is authenticated.

    Raises:
        IntegrityError: not what was sealed. Nothing of it is left.
    """
    ordered = _ordered(buffers)
    check_meta(content, seal, around.meta)
    _check_tag(content, seal, ordered, around)
    keyed = _Section.of(content, seal.section, seal.mode)

    def work(piece: _Piece) -> None:
        out = None if seal.mode == SIGNED else outs[piece.buffer.name]
        try:
            keyed.run(piece, out, seal.tags[_tag_of(piece)])
        except InvalidTag:
            raise IntegrityError(
                f'{piece.buffer.name} in {seal.section} was altered after it was sealed; {_COPY}'
            ) from None

    try:
        in_threads(partial(_do, work), _jobs(ordered, seal.chunk))
    except BaseException:
        for out in outs.values():
            _wipe(out)
        raise


def retag_buffers(buffers: Iterable[Buffer], content: Content, seal: Seal, around: Around, head: bytes) -> Seal:
    """The seal of a section under another stamp, whose ``head`` takes the place of that in ``around``.

    No chunk is opened; whether these are what was sealed shows when they are.

    Raises:
        IntegrityError: list of tensors, stamp or meta are not what was sealed.
    """
    ordered = _ordered(buffers)
    check_meta(content, seal, around.meta)
    _check_tag(content, seal, ordered, around)
    return replace(seal, tag=_manifest(content, seal, ordered, replace(around, head=head)))


def _manifest(content: Content, seal: Seal, buffers: Sequence[Buffer], around: Around) -> bytes:
    """The tag over everything, each part after its length."""
    return _tag_over(content, seal, [_row(b.name, b.dtype, b.shape, len(b.data), seal) for b in buffers], around)


def _row(name: str, dtype: str, shape: tuple[int, ...], size: int, seal: Seal) -> list[Any]:
    return [name, dtype, list(shape), -(-size // seal.chunk)]


def _tag_over(content: Content, seal: Seal, rows: list[list[Any]], around: Around) -> bytes:
    said = canonical([_MANIFEST, seal.section, seal.mode, seal.chunk, rows, seal.shared, sorted(around.public)])
    mac = HMAC(content.subkey(_MANIFEST, [seal.section], b''), SHA256())
    for part in (said, around.head, seal.tags, seal.meta):
        mac.update(_length(part))
        mac.update(part)
    return mac.finalize()


def _check_tag(content: Content, seal: Seal, buffers: Sequence[Buffer], around: Around) -> None:
    if not hmac.compare_digest(_manifest(content, seal, buffers, around), seal.tag):
        raise IntegrityError(
            f'{seal.section} was altered after it was sealed: {_what(content, seal, buffers, around)}; {_COPY}'
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
    now, then = _count(buffers, seal.chunk), len(seal.tags) // TAG_BYTES
    if now != then:
        return f'it holds {now} chunks of tensors, and held {then}: some were left out, added, resized or cast'
    return 'its tensors, its stamp or its seal do not fit together'


def _ordered(buffers: Iterable[Buffer]) -> list[Buffer]:
    return sorted(buffers, key=lambda buffer: buffer.name)


def _chunks(buffer: Buffer, chunk: int) -> int:
    return -(-len(buffer.data) // chunk)


def _count(buffers: Iterable[Buffer], chunk: int) -> int:
    return sum(_chunks(buffer, chunk) for buffer in buffers)


def _tag_of(piece: _Piece) -> slice:
    return slice(TAG_BYTES * (piece.number - 1), TAG_BYTES * piece.number)


def _jobs(buffers: Iterable[Buffer], chunk: int) -> Iterator[list[_Piece]]:
    """All chunks, in groups of about as many bytes, so that many small tensors do not cost a job each."""
    numbers, job, size = count(1), list[_Piece](), 0
    for buffer in buffers:
        of = _chunks(buffer, chunk)
        for place in range(of):
            start, stop = place * chunk, min((place + 1) * chunk, len(buffer.data))
            job.append(_Piece(buffer, place, of, next(numbers), start, stop))
            size += stop - start
            if size >= CHUNK:
                yield job
                job, size = [], 0
    if job:
        yield job


def _do(work: Callable[[_Piece], None], job: list[_Piece]) -> None:
    for piece in job:
        work(piece)


def _wipe(view: memoryview) -> None:
    zeros = bytes(min(len(view), CHUNK))
    for start in range(0, len(view), len(zeros) or 1):
        view[start : start + len(zeros)] = zeros[: len(view) - start]


def _length(part: bytes) -> bytes:
    return len(part).to_bytes(_LENGTH_BYTES, 'big')
