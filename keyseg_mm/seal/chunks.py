"""Chunks of tensors, each encrypted and authenticated in one pass, and how they are shared out to threads; no torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import count, groupby
from typing import Any, NamedTuple

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import GCM

from keyseg_mm.envelope import CHUNK, TAG_BYTES
from keyseg_mm.seal.meta import Content, canonical

_SECTION, _CHUNK = 'keyseg_mm/section/v1', 'keyseg_mm/chunk/v1'
_NONCE_BYTES, _LENGTH_BYTES = 12, 8


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


class Piece(NamedTuple):
    """A chunk of a buffer, ``place`` (from 0) ``of`` so many; the ``number``-th of its section, from 1."""

    buffer: Buffer
    place: int
    of: int
    number: int
    start: int
    stop: int

    def cut(self, view: memoryview) -> memoryview:
        """The bytes of this chunk in memory that holds the whole tensor."""
        return view[self.start : self.stop]


@dataclass(frozen=True)
class Section:
    """A section with its key."""

    name: str
    mode: str
    key: AES256 = field(repr=False)

    @classmethod
    def of(cls, content: Content, name: str, mode: str) -> Section:
        return cls(name, mode, AES256(content.subkey(_SECTION, [name], b'')))

    def run(self, piece: Piece, data: memoryview, out: memoryview | None, tag: bytes | None = None) -> bytes:
        """Encrypt a chunk, or decrypt it where its tag is given; or authenticate it alone.

        Args:
            piece: which one it is.
            data: its bytes.
            out: where they go, encrypted or decrypted; may be where they are. None where they stay readable.
            tag: of the encrypted chunk.

        Returns:
            Its tag.

        Raises:
            InvalidTag: the tag does not fit.
        """
        buffer = piece.buffer
        cipher = Cipher(self.key, GCM(piece.number.to_bytes(_NONCE_BYTES, 'big'), tag))
        context: Any = cipher.encryptor() if tag is None else cipher.decryptor()
        said = canonical([_CHUNK, self.name, buffer.name, buffer.dtype, list(buffer.shape), piece.place, piece.of])
        if out is None:
            context.authenticate_additional_data(length_of(said) + said)
            context.authenticate_additional_data(data)
        else:
            context.authenticate_additional_data(said)
            context.update_into(data, out)
        context.finalize()
        return context.tag if tag is None else tag


def ordered(buffers: Iterable[Buffer]) -> list[Buffer]:
    """Buffers in the order in which their chunks are counted."""
    return sorted(buffers, key=lambda buffer: buffer.name)


def chunks_of(size: int, chunk: int) -> int:
    """How many chunks of so many bytes a tensor of that size has."""
    return -(-size // chunk)


def count_of(buffers: Iterable[Buffer], chunk: int) -> int:
    """How many chunks a section has."""
    return sum(chunks_of(len(buffer.data), chunk) for buffer in buffers)


def tag_of(piece: Piece) -> slice:
    """Where the tag of a chunk is among those of its section."""
    return slice(TAG_BYTES * (piece.number - 1), TAG_BYTES * piece.number)


def jobs_of(buffers: Iterable[Buffer], chunk: int) -> Iterator[list[Piece]]:
    """All chunks, in groups of about as many bytes, so that many small tensors do not cost a job each."""
    numbers, job, size = count(1), list[Piece](), 0
    for buffer in buffers:
        of = chunks_of(len(buffer.data), chunk)
        for place in range(of):
            start, stop = place * chunk, min((place + 1) * chunk, len(buffer.data))
            job.append(Piece(buffer, place, of, next(numbers), start, stop))
            size += stop - start
            if size >= CHUNK:
                yield job
                job, size = [], 0
    if job:
        yield job


def whole_of(buffers: Iterable[Buffer], chunk: int) -> list[list[Piece]]:
    """All chunks of each tensor together, the largest first, so that none is late and alone."""
    pieces = (piece for job in jobs_of(buffers, chunk) for piece in job)
    found = [list(group) for _, group in groupby(pieces, key=lambda piece: piece.buffer.name)]
    return sorted(found, key=lambda group: -len(group[0].buffer.data))


def length_of(part: bytes) -> bytes:
    """What goes before a part of what is authenticated, so that no two lists of parts read the same."""
    return len(part).to_bytes(_LENGTH_BYTES, 'big')
