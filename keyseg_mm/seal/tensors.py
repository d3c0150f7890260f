"""The file cipher on tensors: a state_dict, say, sealed as it is written to a file and opened as it is read.

Every bit of every tensor counts, in the order of its indices; how it lies in memory does not. Values that are no
tensors, and stamps, stay as they are; stamps of parts are authenticated, other values are not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from keyseg_mm.envelope import CHUNK, SEALED, SIGNED, Seal
from keyseg_mm.errors import IntegrityError, LockError, StampError
from keyseg_mm.seal.chunks import Piece
from keyseg_mm.seal.cipher import Around, Buffer, open_buffers, reseal_buffers, retag_buffers, seal_buffers
from keyseg_mm.seal.memory import Put, alone, bytes_of, fitting, ordinary, refuse_scattered, why_not
from keyseg_mm.seal.meta import Content
from keyseg_mm.stamp import DAMAGED, is_stamp

#: Changes a tensor, given its name and itself.
Change = Callable[[str, Tensor], None]


def seal_tensors(
    tensors: Mapping[str, Any],
    content: Content,
    section: str,
    head: bytes,
    meta: Mapping[str, Any] | None,
    mode: str = SEALED,
    own: bool = False,
    chunk: int = CHUNK,
) -> tuple[dict[str, Any], Seal]:
    """Seal a section of a file that is about to be written.

    Args:
        tensors: a state_dict, with or without its stamp; they may be those of a live model.
        content: content key, **fresh for this file**: under one, a section of this name is sealed once.
        head: the stamp's bytes without its seals.
        meta: of the file; what is plain of them counts, see :func:`keyseg_mm.seal.meta.plain_values`.
        mode: ``'sealed'``, or ``'signed'``: they stay readable.
        own: the tensors' memory may be overwritten, where nothing else lies in it; it is garbage after an error.
        chunk: bytes that are encrypted at once.

    Returns:
        The section as it is to be written, names in the same order, and its seal. The very same views of the same
        memory are one tensor there, too.

    Raises:
        LockError: some tensors cannot be sealed; all of them are named.
        StampError: a part's stamp is none.
        ValueError: a section, mode or chunk that is none.
    """
    weights = _weights(tensors)
    shared = _shared(weights)
    sources = {name: ordinary(t) for name, t in weights.items() if name not in shared}
    results = {name: weights[name] for name in sources}
    if mode != SIGNED:
        given = {name: sources[name] for name in alone(results)} if own else {}
        results = _rooms(results, sources, given)
    around = Around(head, _public(tensors), shared, meta)
    seal = seal_buffers(_buffers(sources), _views(results, mode), content, section, mode, chunk, around)
    return _result(tensors, results, shared), seal


def open_tensors(
    tensors: Mapping[str, Any],
    content: Content,
    seal: Seal,
    head: bytes,
    meta: Mapping[str, Any] | None,
    into: Mapping[str, Tensor] | None = None,
    own: bool = False,
    only: Callable[[Tensor], bool] | None = None,
) -> dict[str, Any]:
    """Open a section that was read from a file, and check every bit of it.

    Args:
        tensors: the section, as it was read; names in any order.
        content, seal, head: content key, the section's seal, and the stamp's bytes without its seals.
        meta: of the file; a file that lost them opens.
        into: memory to hold them, by name, as a model's parameters: taken where dtype and shape are the same, it is
            contiguous on the CPU, and nothing else lies in it.
        own: the tensors' memory may be overwritten; taken where ``into`` has none.
        only: which tensors to open; the others are left as they were read, and not checked.

    Returns:
        The section, names in the same order; those opened into given memory are that very tensor, those only signed as
        they were read.

    Raises:
        IntegrityError: not what was sealed. What was opened of it, in given memory too, is zeroed.
        LockError, StampError: as of :func:`seal_tensors`.
    """
    weights, signed = _weights(tensors), seal.mode == SIGNED
    _check_copies(weights, seal)
    singles = {name: t for name, t in weights.items() if name not in seal.shared}
    sources = {name: ordinary(t) for name, t in singles.items()}
    asked = {name: t for name, t in singles.items() if only is None or only(t)}
    results = singles if signed else _rooms(asked, sources, fitting(asked, into or {}, own))
    outs, around = _views(results, seal.mode), Around(head, _public(tensors), seal.shared, meta)
    open_buffers(_buffers(sources), dict.fromkeys(singles) | outs, content, seal, around)
    for tensor in () if signed else results.values():
        torch.autograd.graph.increment_version(tensor)  # written to behind torch's back
    return _result(tensors, results, seal.shared)


def retag_tensors(
    tensors: Mapping[str, Any], content: Content, seal: Seal, heads: tuple[bytes, bytes], meta: Mapping[str, Any] | None
) -> Seal:
    """The seal of a section under another stamp; nothing is opened.

    Args:
        tensors, content, seal, meta: as of :func:`open_tensors`.
        heads: the old stamp's bytes and the new one's, without their seals.

    Raises:
        IntegrityError: list of tensors, stamp or meta are not what was sealed.
    """
    singles = {name: ordinary(t) for name, t in _weights(tensors).items() if name not in seal.shared}
    around = Around(heads[0], _public(tensors), seal.shared, meta)
    return retag_buffers(_buffers(singles), content, seal, around, heads[1])


def reseal_tensors(
    tensors: Mapping[str, Any],
    put: Put,
    contents: tuple[Content, Content],
    seal: Seal,
    heads: tuple[bytes, bytes],
    meta: Mapping[str, Any] | None,
    change: Change | None = None,
) -> Seal:
    """The seal of a section under another content key and stamp; the tensors stay as they are.

    Args:
        tensors, seal, heads, meta: as of :func:`retag_tensors`.
        put: is given each chunk as it is encrypted anew, and where in memory the one lies that it replaces.
        contents: content key, and the fresh one to come, which never seals a section of this name again.
        change: what is sealed anew is what this makes of a plain tensor, in its place; from several threads, each of
            which has one tensor open at a time. Of tensors that are the very same it is given the first one.

    Raises:
        IntegrityError: not what was sealed.
        ScatteredError: the tensors do not lie in memory one by one.
    """
    weights = _weights(tensors)
    places = _places(weights, seal)

    def put_each(piece: Piece, data: memoryview) -> None:
        for place in places[piece.buffer.name]:
            put(place + piece.start, data)

    def change_bytes(name: str, data: memoryview) -> None:
        if change is not None:
            change(name, torch.frombuffer(data, dtype=weights[name].dtype).view(weights[name].shape))

    singles = _buffers({name: weights[name].detach() for name in places})
    around = Around(heads[0], _public(tensors), seal.shared, meta)
    return reseal_buffers(singles, put_each, contents, seal, around, heads[1], change and change_bytes)


def _places(weights: Mapping[str, Tensor], seal: Seal) -> dict[str, list[int]]:
    """Where in memory the bytes of each tensor lie, in more than one place where the very same one was copied."""
    _check_copies(weights, seal)
    copies = {n: first for n, first in seal.shared.items() if not _same_view(weights[first], weights[n])}
    apart = {name: t for name, t in weights.items() if name not in seal.shared or name in copies}
    refuse_scattered(apart)
    places = {name: [t.data_ptr()] for name, t in apart.items() if name not in copies}
    for name, first in copies.items():
        places[first].append(weights[name].data_ptr())
    return places


def _weights(tensors: Mapping[str, Any]) -> dict[str, Tensor]:
    """What is sealed of a section, in the order of names."""
    found = {n: t for n, t in tensors.items() if isinstance(n, str) and isinstance(t, Tensor) and not is_stamp(n)}
    problems = [f'{n!r:.80} (no name)' for n, t in tensors.items() if not isinstance(n, str) and isinstance(t, Tensor)]
    problems += [f'{name} ({why})' for name, tensor in found.items() if (why := why_not(tensor))]
    if problems:
        raise LockError(f'these tensors cannot be sealed, nor opened: {", ".join(problems)}')
    return dict(sorted(found.items()))


def _shared(weights: Mapping[str, Tensor]) -> dict[str, str]:
    """Names of tensors that are the very same view as one before them."""
    firsts: dict[object, str] = {}
    found = {}
    for name, t in weights.items():
        where = (t.device, t.untyped_storage().data_ptr(), t.storage_offset(), t.dtype, t.is_conj(), t.is_neg())
        first = firsts.setdefault((*where, t.shape, t.stride()), name) if t.numel() else name
        if first != name:
            found[name] = first
    return found


def _rooms(
    tensors: Mapping[str, Tensor], sources: Mapping[str, Tensor], given: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Where the result of each tensor goes: to what is given for it, to its source if that is a copy, to new memory."""
    rooms = {}
    for name, tensor in tensors.items():
        source = sources[name]
        copied = source.device != tensor.device or source.data_ptr() != tensor.data_ptr()
        room = source if copied else None
        room = given.get(name, room)
        rooms[name] = torch.empty(source.shape, dtype=source.dtype) if room is None else room
    return rooms


def _check_copies(weights: Mapping[str, Tensor], seal: Seal) -> None:
    """Tensors that were the very same one still are, or are copies; how they lie in memory does not matter.

    Raises:
        IntegrityError: they are not, or one is missing.
    """
    for name, first in seal.shared.items():
        one, other = weights.get(first), weights.get(name)
        if one is None or other is None or one.dtype != other.dtype or one.shape != other.shape:
            raise IntegrityError(f'{name} and {first} in {seal.section} are to be one tensor, and are not in this file')
        if not _same_view(one, other) and not torch.equal(_flat(one), _flat(other)):
            raise IntegrityError(f'{name} in {seal.section} was altered after it was sealed: it is {first} no more')


def _flat(tensor: Tensor) -> Tensor:
    return ordinary(tensor).view(-1).view(torch.uint8)


def _same_view(one: Tensor, other: Tensor) -> bool:
    return one.data_ptr() == other.data_ptr() and one.stride() == other.stride() and one.device == other.device


def _public(tensors: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """The stamps of parts, by name, with their bytes in hex; that of the whole is given apart."""
    found = {name: value for name, value in tensors.items() if isinstance(name, str) and is_stamp(name)}
    parts = {name: value for name, value in found.items() if '.' in name}
    fine = all(
        isinstance(t, Tensor) and not why_not(t) and t.dtype == torch.uint8 and t.dim() == 1 for t in parts.values()
    )
    if len(found) - len(parts) > 1 or not fine:
        raise StampError(DAMAGED)
    return tuple((name, bytes(t.tolist()).hex()) for name, t in parts.items())


def _buffers(tensors: Mapping[str, Tensor]) -> list[Buffer]:
    names = {dtype: str(dtype).removeprefix('torch.') for dtype in {t.dtype for t in tensors.values()}}
    return [Buffer(n, names[t.dtype], tuple(t.shape), bytes_of(t)) for n, t in tensors.items()]


def _views(tensors: Mapping[str, Tensor], mode: str) -> dict[str, memoryview]:
    return {} if mode == SIGNED else {name: bytes_of(t) for name, t in tensors.items()}


def _result(tensors: Mapping[str, Any], found: Mapping[str, Tensor], shared: Mapping[str, str]) -> dict[str, Any]:
    """A section with what was found in place of its tensors."""
    return {name: found.get(shared.get(name, name), value) for name, value in tensors.items()}
