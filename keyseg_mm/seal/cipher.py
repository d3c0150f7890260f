"""The file cipher, on named buffers of bytes; no torch.

Each chunk of a tensor is encrypted and authenticated in one pass by AES-256-GCM (NIST SP 800-38D), in place or on the
way to where it is wanted, under a key that HKDF-SHA256 (RFC 5869) makes of the content key for this section alone. The
nonce counts the chunks of the section, so none is used twice, as long as **a content key seals a section once**: it is
drawn afresh for every file that is written. A chunk's associated data say which one of which tensor it is.

Over all of it goes one tag by HMAC-SHA256 (RFC 2104): the list of tensors, the tags of their chunks, the stamp. AES-GCM
alone does not commit to its key, since one ciphertext may open under two; that tag does.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from itertools import accumulate

from cryptography.exceptions import InvalidTag

from keyseg_mm.envelope import CHUNK, MAC_BYTES, SIGNED, TAG_BYTES, Seal
from keyseg_mm.errors import IntegrityError
from keyseg_mm.seal.chunks import Buffer, Piece, Section, count_of, jobs_of, ordered, tag_of, whole_of
from keyseg_mm.seal.manifest import COPY, Around, check_seal, manifest_tag
from keyseg_mm.seal.meta import Content, meta_mac
from keyseg_mm.threads import in_threads

__all__ = ['CHUNK', 'Around', 'Buffer', 'Content', 'open_buffers', 'reseal_buffers', 'retag_buffers', 'seal_buffers']


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
    in_order = ordered(buffers)
    shared = dict(sorted(around.shared.items()))
    seal = Seal(section, mode, chunk, shared, bytes(0), meta_mac(content, around.meta), bytes(MAC_BYTES))
    seal = replace(seal, tags=bytes(TAG_BYTES * count_of(in_order, chunk)))  # refused before anything is changed
    keyed, tags = Section.of(content, section, mode), bytearray(seal.tags)

    def work(piece: Piece) -> None:
        out = None if mode == SIGNED else piece.cut(outs[piece.buffer.name])
        tags[tag_of(piece)] = keyed.run(piece, piece.cut(piece.buffer.data), out)

    in_threads(partial(_do, work), jobs_of(in_order, chunk))
    seal = replace(seal, tags=bytes(tags))
    return replace(seal, tag=manifest_tag(content, seal, in_order, around))


def open_buffers(
    buffers: Iterable[Buffer], outs: Mapping[str, memoryview | None], content: Content, seal: Seal, around: Around
) -> None:
    """Open a section, or check it where it is only signed; ``outs`` are zeroed whole where a chunk fails.

    Args:
        buffers: its tensors, in any order.
        outs: where the plain bytes of each go, by name; may be where its ciphertext is. None for one that is neither to
            be opened nor to be checked.
        content: content key.
        seal: of the section.
        around: what else is authenticated.

    Raises:
        IntegrityError: not what was sealed. Nothing of it is left.
    """
    in_order = ordered(buffers)
    check_seal(content, seal, in_order, around)
    keyed = Section.of(content, seal.section, seal.mode)

    def work(piece: Piece) -> None:
        if seal.mode == SIGNED:
            _open_chunk(keyed, piece, None, seal)
        elif (out := outs[piece.buffer.name]) is not None:
            _open_chunk(keyed, piece, piece.cut(out), seal)

    try:
        in_threads(partial(_do, work), jobs_of(in_order, seal.chunk))
    except BaseException:
        for out in outs.values():
            _wipe(out or memoryview(b''))
        raise


def retag_buffers(buffers: Iterable[Buffer], content: Content, seal: Seal, around: Around, head: bytes) -> Seal:
    """The seal of a section under another stamp, whose ``head`` takes the place of that in ``around``.

    No chunk is opened; whether these are what was sealed shows when they are.

    Raises:
        IntegrityError: list of tensors, stamp or meta are not what was sealed.
    """
    in_order = ordered(buffers)
    check_seal(content, seal, in_order, around)
    return replace(seal, tag=manifest_tag(content, seal, in_order, replace(around, head=head)))


def reseal_buffers(
    buffers: Iterable[Buffer],
    put: Callable[[Piece, memoryview], object],
    contents: tuple[Content, Content],
    seal: Seal,
    around: Around,
    head: bytes,
    change: Callable[[str, memoryview], None] | None = None,
) -> Seal:
    """The seal of a section under another content key and stamp. Each thread has a chunk open at a time, or a tensor.

    Args:
        buffers, seal, around: as of :func:`open_buffers`.
        put: is given each chunk of ciphertext, from several threads; its bytes hold until it returns.
        contents: content key, and the fresh one to come, which never seals a section of this name again.
        head: the stamp's bytes to come, without its seals.
        change: changes the plain bytes of a tensor, given its name, in between; not for ``'signed'``.

    Raises:
        IntegrityError: not what was sealed.
    """
    in_order, own, fresh = ordered(buffers), threading.local(), contents[1]
    check_seal(contents[0], seal, in_order, around)
    old, new = (Section.of(key, seal.section, seal.mode) for key in contents)
    tags, signed = bytearray(seal.tags), seal.mode == SIGNED

    def work(job: list[Piece]) -> None:
        room, parts = _room(own, job)
        for piece, part in zip(job, parts):
            _open_chunk(old, piece, None if signed else part, seal)
        if change is not None:
            change(job[0].buffer.name, room)
        for piece, part in zip(job, parts):
            tags[tag_of(piece)] = new.run(piece, *((piece.cut(piece.buffer.data), None) if signed else (part, part)))
            if not signed:
                put(piece, part)

    in_threads(work, jobs_of(in_order, seal.chunk) if change is None else whole_of(in_order, seal.chunk))
    resealed = replace(seal, tags=bytes(tags), meta=meta_mac(fresh, around.meta))
    return replace(resealed, tag=manifest_tag(fresh, resealed, in_order, replace(around, head=head)))


def _room(own: threading.local, job: list[Piece]) -> tuple[memoryview, list[memoryview]]:
    """A thread's own room for the chunks of a job, one behind the other: all of it, and that of each.

    It is used again, since fresh memory is slow.
    """
    stops = list(accumulate(piece.stop - piece.start for piece in job))
    if len(getattr(own, 'room', b'')) < stops[-1]:
        own.room = bytearray(stops[-1])
    room = memoryview(own.room)[: stops[-1]]
    return room, [room[start:stop] for start, stop in zip([0, *stops], stops)]


def _open_chunk(section: Section, piece: Piece, out: memoryview | None, seal: Seal) -> None:
    try:
        section.run(piece, piece.cut(piece.buffer.data), out, seal.tags[tag_of(piece)])
    except InvalidTag:
        raise IntegrityError(f'{piece.buffer.name} in {seal.section} was altered after it was sealed; {COPY}') from None


def _do(work: Callable[[Piece], None], job: list[Piece]) -> None:
    for piece in job:
        work(piece)


def _wipe(view: memoryview) -> None:
    zeros = bytes(min(len(view), CHUNK))
    for start in range(0, len(view), len(zeros) or 1):
        view[start : start + len(zeros)] = zeros[: len(view) - start]
