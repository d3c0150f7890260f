"""Files of exported graphs, read in memory: sealed ones, and keyed ones with sealed tables in them; no torch.

A sealed graph is a sealed ``.safetensors`` file (see :mod:`keyseg_mm.checkpoint.layout`): one tensor of bytes, the
graph's own file, so that whatever lists, rekeys and gives away checkpoints does it to graphs too. A keyed graph is an
ordinary file, with such a sealed one in it, which holds the tables that are its inputs.
"""

from __future__ import annotations

import base64
import hmac
import io
import os
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keyseg_mm.checkpoint.known import UnreadableError
from keyseg_mm.checkpoint.layout import Row, read_layout
from keyseg_mm.envelope import SEALED
from keyseg_mm.errors import IntegrityError, KeyFileError, KeysegError, StampError
from keyseg_mm.keys.derive import sha256
from keyseg_mm.keys.identity import Key
from keyseg_mm.keys.locator import locate
from keyseg_mm.seal.cipher import Around, Buffer, open_buffers
from keyseg_mm.stamp import Stamp, is_stamp
from keyseg_mm.wrapping import open_envelope

Source = str | PathLike[str] | bytes | bytearray | memoryview
Tables = dict[str, NDArray[Any]]
#: Name of the tensor that holds the graph's file; what meta says of its format; what the tables' file is called in one.
GRAPH, FORMAT, TABLES = 'graph', 'keyseg_mm graph', 'keyseg_mm.tables'
ONNX, TORCH = 'onnx', 'torch-export'
_SECTION = 'state_dict'
_METADATA, _KEY, _VALUE = 14, 1, 2  # fields of ONNX's ModelProto, and of the StringStringEntryProto that it lists there
_BYTES = 2  # protobuf's wire type of bytes
_ZIP, _EXTRA = b'PK', f'/extra/{TABLES}'  # how an archive begins; where torch.export has files that go with a program


@dataclass(frozen=True)
class Exported:
    """An exported graph, opened.

    Attributes:
        graph: the bytes of its own file; of a sealed one they are the plain model.
        format: ``'onnx'`` or ``'torch-export'``.
        meta: what the file says of it: ``size``, ``classes`` ...
        tables: what its inputs of these names are to be given; empty where it has none.
        verified: whether a seal that the key opened says that this is the graph which a holder of the key wrote.
    """

    graph: memoryview = field(repr=False)
    format: str
    meta: dict[str, Any]
    tables: Tables = field(default_factory=dict, repr=False)
    verified: bool = True

    def neutral(self) -> Exported:
        """The same graph with tables that change nothing, as whoever has no key feeds them."""
        return replace(self, tables={name: nothing(t.shape, str(t.dtype)) for name, t in self.tables.items()})


def read_exported(source: Source, key: Key | str | None, verify: bool = True) -> Exported:
    """Open what ``keyseg export`` made, in memory.

    Args:
        source: its path, or its bytes.
        key: key, identity or locator, as ``'file:customer.key'``; ``'none'`` runs a keyed graph without its key, on
            purpose: with tables that change nothing.
        verify: refuse a keyed graph that is not the one its tables were written for, as after another tool changed it.
            Where it is not refused, and where there is no key, nobody can tell who made the graph.

    Raises:
        KeyFileError: no key there.
        KeyMismatchError: it is for others.
        IntegrityError: it was altered.
        KeysegError: it is no such file.
    """
    where = source if isinstance(source, (str, PathLike)) else 'this graph'
    found = locate(key)
    data = _read(source)
    try:
        if data[8:9] == b'{':
            return _sealed(data, _needed(found.key))
        graph, tables = _parts(data)
        meta, opened = _tables(tables, found.key)
        fits = hmac.compare_digest(digest(graph), meta['sha256'])
    except (UnreadableError, ValueError, KeyError, TypeError, IndexError, zipfile.BadZipFile):
        raise KeysegError(
            f'{where} is cut short, or is no graph that keyseg export made; one without a key runs as any other'
        ) from None
    if verify and not fits:
        raise IntegrityError(
            f'{where} is not the graph that its tables were made for: it was altered. If a tool of yours did that: '
            'verify=False'
        )
    return Exported(graph, meta[FORMAT], meta, opened, verified=fits and found.key is not None)


def digest(graph: Any) -> str:
    """What the tables of a keyed graph say of it: the SHA-256 of its bytes, in hex."""
    return sha256(graph).hex()


def with_tables(graph: bytes, container: bytes) -> bytes:
    """A graph's file with a tables' file in it: the last entry of an ONNX file's metadata, or an archive's extra file.

    Protobuf reads fields in any order, so that nothing before it changes.

    Args:
        graph: of ONNX, or a program of torch as :func:`archive_of` writes it.
        container: the tables' file.
    """
    text = base64.b64encode(container)
    if graph[:2] != _ZIP:
        return graph + _field(_METADATA, _field(_KEY, TABLES.encode()) + _field(_VALUE, text))
    members = members_of(graph)
    return archive_of({**members, f'{next(iter(members)).partition("/")[0]}{_EXTRA}': text})


def archive_of(members: Mapping[str, bytes]) -> bytes:
    """A zip archive of these members, the same for the same ones: nothing else is in it that could be altered."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w') as archive:
        for name in sorted(members):
            archive.writestr(zipfile.ZipInfo(name), members[name])
    return file.getvalue()


def members_of(data: Any) -> dict[str, bytes]:
    """The members of a zip archive, stored as they are, by name.

    Raises:
        UnreadableError, zipfile.BadZipFile: it is damaged, or no such archive.
    """
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        rows = archive.infolist()
        plain = all(row.compress_type == zipfile.ZIP_STORED and not row.flag_bits & 1 for row in rows)
        if not plain or len({row.filename for row in rows}) != len(rows) or sum(r.file_size for r in rows) > len(data):
            raise UnreadableError
        return {row.filename: archive.read(row) for row in rows}


def _needed(key: Key | None) -> Key:
    if key is None:
        raise KeyFileError("a sealed graph cannot run without its key: key='file:PATH'")
    return key


def _read(source: Source) -> bytearray:
    if isinstance(source, (bytes, bytearray, memoryview)):
        return bytearray(source)
    if not isinstance(source, (str, PathLike)):
        raise KeysegError(f'a graph is read from a path or from bytes, and this is a {type(source).__name__}')
    try:
        with open(source, 'rb') as file:
            data = bytearray(os.fstat(file.fileno()).st_size)
            return data[: file.readinto(data)]
    except OSError as error:
        raise KeysegError(f'{source} could not be read: {error.strerror or error}') from None


def _sealed(data: bytearray, key: Key) -> Exported:
    tensors, meta = _open(data, key)
    if list(tensors) != [GRAPH] or meta.get(FORMAT) not in (ONNX, TORCH):
        raise KeysegError('this is a sealed checkpoint, and no graph; keyseg_mm.load takes it')
    return Exported(tensors[GRAPH][1], meta[FORMAT], meta)


def _tables(data: bytearray, key: Key | None) -> tuple[dict[str, Any], Tables]:
    """What a tables' file says, and the tables; such that change nothing where there is no key."""
    if key is None:
        rows, meta = read_layout(data)
        return meta, {name: nothing(rows[name].shape, rows[name].dtype) for name in meta['tables']}
    tensors, meta = _open(data, key)
    arrays = {name: np.frombuffer(view, row.dtype).reshape(row.shape) for name, (row, view) in tensors.items()}
    return meta, {name: arrays[name] for name in meta['tables']}  # in the order in which the graph takes them


def nothing(shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
    """The table of a map that changes nothing: an order, signs, or matrices."""
    if len(shape) == 1:
        return np.arange(shape[0]) if dtype == 'int64' else np.ones(shape, dtype)
    return np.broadcast_to(np.eye(shape[-1], dtype=dtype), shape).copy()


def _open(data: bytearray, key: Key) -> tuple[dict[str, tuple[Row, memoryview]], dict[str, Any]]:
    """The tensors of a sealed file, opened where they lie, and its meta.

    Raises:
        KeyMismatchError, IntegrityError, StampError, UnreadableError, ValueError, KeyError, TypeError: not as it was.
    """
    rows, meta = read_layout(data)
    view = memoryview(data)
    stamp = _stamp({name: bytes(view[row.start : row.stop]) for name, row in rows.items() if is_stamp(name)})
    if stamp.seal is None or stamp.seal.mode != SEALED or stamp.seal.shared or stamp.seal.section != _SECTION:
        raise StampError('this file has no seal of a graph; take a copy from where it was made')
    content = open_envelope(key, stamp).content
    if content is None:
        raise IntegrityError('the envelope of this file has no key for it; take a copy from where it was made')
    views = {name: view[row.start : row.stop] for name, row in rows.items() if not is_stamp(name)}
    buffers = [Buffer(name, rows[name].dtype, rows[name].shape, views[name]) for name in views]
    around = Around(replace(stamp, seal=None).to_bytes(), meta=meta)
    open_buffers(buffers, views, content, stamp.seal, around)
    return {name: (rows[name], found) for name, found in views.items()}, meta


def _stamp(stamps: Mapping[str, bytes]) -> Stamp:
    """The stamp of a file; there is one."""
    ((name, content),) = stamps.items()
    stamp = Stamp.from_bytes(content)
    if stamp.name != name:
        raise StampError('the stamp of this file is damaged; take a copy from where it was made')
    return stamp


def _parts(data: bytearray) -> tuple[memoryview, bytearray]:
    """The graph of a keyed graph's file, and its tables' file: nothing else is in there, so that no reader sees more.

    An archive is written anew, since readers of zip do not agree on what is in one.
    """
    if data[:2] == _ZIP:
        members = members_of(data)
        (name,) = (name for name in members if name.endswith(_EXTRA))
        text = members.pop(name)
        return memoryview(archive_of(members)), bytearray(base64.b64decode(text, validate=True))
    *_, (start, stop, number, value) = _fields(data)
    found = {n: bytes(v) for *_, n, v in _fields(value)}
    if stop != len(data) or number != _METADATA or found.get(_KEY) != TABLES.encode():
        raise UnreadableError
    return memoryview(data)[:start], bytearray(base64.b64decode(found[_VALUE], validate=True))


def _fields(data: Any) -> Iterator[tuple[int, int, int, memoryview]]:
    """The fields of a protobuf message that hold bytes: where each starts and stops, its number, and what it holds."""
    view, at = memoryview(data), 0
    while at < len(view):
        start = at
        tag, at = _number(view, at)
        if tag & 7 == _BYTES:
            size, at = _number(view, at)
            if at + size > len(view):
                raise UnreadableError
            yield start, at + size, tag >> 3, view[at : at + size]
            at += size
        elif tag & 7 == 0:
            _, at = _number(view, at)
        else:
            at += {1: 8, 5: 4}[tag & 7]


def _number(view: memoryview, at: int) -> tuple[int, int]:
    """A variable-length number of protobuf, and where the next thing begins."""
    found = 0
    for shift in range(0, 70, 7):
        byte = view[at]
        at += 1
        found |= (byte & 127) << shift
        if byte < 128:
            return found, at
    raise UnreadableError


def _field(number: int, content: bytes) -> bytes:
    size, coded = len(content), b''
    while size > 127:
        coded += bytes([size & 127 | 128])
        size >>= 7
    return bytes([number << 3 | _BYTES]) + coded + bytes([size]) + content
