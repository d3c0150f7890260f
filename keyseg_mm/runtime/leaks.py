"""Looking for a key and its derived tables in what a run wrote.

A haystack is any sequence of bytes: a file, a tensor, a text. The needles are the key in raw, hex, base32, base64 and
text form, and every derived table as little-endian integers and floats of each width, as text, and as pickled numbers.
Compressed members of zip archives (``.pth``, ``.npz``) are searched unpacked too.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from keyseg_mm.bind import derive_cipher, derive_map, derive_order, open_envelope
from keyseg_mm.keys.identity import Key
from keyseg_mm.keys.key import FeatureSecret
from keyseg_mm.keys.secret import Secret
from keyseg_mm.stamp import Stamp

_INTEGERS = ('<i1', '<i2', '<i4', '<i8')
_FLOATS = ('<f2', '<f4', '<f8')
_SEPARATORS = (',', ', ', ' ', '\n', ',\n')
# A run of this many entries is looked for, not the whole table: a leak may be cut into lines or pages. Even of signs,
# 64 in a row do not come about by chance.
_RUN = 24
_RUN_OF_SIGNS = 64
# Shorter tables turn up anywhere: a handful of small integers in any file, and signs that all happen to be +1 in every
# fresh batch norm.
_SHORTEST = 8
_SHORTEST_OF_SIGNS = 32
_LARGE = 2**20  # bytes


@dataclass(frozen=True)
class Leak:
    """Something secret that was found; names what and where, never the secret itself."""

    where: str
    what: str

    def __str__(self) -> str:
        return f'{self.where}: {self.what}'


class Needles(Secret):
    """What to look for.

    Args:
        key: the secret key.
        stamps: stamps whose derived tables are to be looked for too.
    """

    __slots__ = ('raw', 'forms')

    def __init__(self, key: Key, stamps: Iterable[Stamp] = ()) -> None:
        keys = key.needles()
        self.raw = keys['raw']
        self.forms: dict[bytes, str] = {form: f'the key ({name})' for name, form in keys.items()}
        for stamp in stamps:
            features = key.features(stamp.salt)
            if stamp.recipients and key.id in stamp.key_ids:
                secrets = open_envelope(key, stamp)
                features = secrets.features
                content = {} if secrets.content is None else secrets.content.needles()
                self.forms.update({form: f"the file's content key ({name})" for name, form in content.items()})
            self.forms.update({form: f"the model's secret ({name})" for name, form in features.needles().items()})
            for where, tables in _tables(key, features, stamp):
                self._add(tables, where)

    def _add(self, tables: dict[str, NDArray[Any]], where: str) -> None:
        for name, table in tables.items():
            for form, how in _table_forms(table):
                self.forms.setdefault(form, f'the {name} {where} ({how})')

    @property
    def public_id(self) -> str:
        return f'of {len(self.forms)} forms'

    def search(self, where: str, haystack: bytes, key_only: bool = False) -> list[Leak]:
        """All needles found in some bytes; ``key_only`` looks for the raw key alone, which is quick."""
        forms = {self.raw: self.forms[self.raw]} if key_only else self.forms
        return [Leak(where, what) for form, what in forms.items() if form in haystack]


def _tables(key: Key, features: FeatureSecret, stamp: Stamp) -> Iterator[tuple[str, dict[str, NDArray[Any]]]]:
    """The secret tables of a stamp, by the place where they work."""
    for entry in stamp.maps:
        yield f'at {entry.point}', derive_map(features, stamp.salt, entry).tables()
    for tensor in stamp.tensors:
        yield f'of the values of {tensor.names[0]}', {'order': derive_order(features, stamp.salt, tensor)}
    for embedding in stamp.embeddings:
        yield 'of the images', derive_cipher(features, stamp.salt, embedding).leaks()
    for image in stamp.images:
        yield 'of the images', derive_cipher(key, stamp.salt, image).leaks()


def find_leaks(folder: str | Path, key: Key, stamps: Iterable[Stamp] = ()) -> list[Leak]:
    """Search every file below a folder (or one file) for the key and for the tables of the stamps.

    Args:
        folder: what to search.
        key: the secret key.
        stamps: of the protected models; see :func:`keyseg_mm.stamp.stamps_of`.

    Returns:
        What was found; empty is good.
    """
    needles = Needles(key, stamps)
    return [
        leak for path in files_below(folder) for where, data in _contents(path) for leak in needles.search(where, data)
    ]


def files_below(folder: str | Path) -> list[Path]:
    """All files in a folder and the folders in it, in order; a file stands for itself."""
    root = Path(folder)
    return sorted(p for p in root.rglob('*') if p.is_file()) if root.is_dir() else [root] * root.is_file()


def search_object(where: str, value: Any, needles: Needles) -> list[Leak]:
    """Search a checkpoint in memory: nested dicts and sequences of tensors, arrays, texts, bytes and numbers.

    Tensors above 1 MiB, the weights of large layers, are searched for the raw key only, to keep saving quick.
    """
    if isinstance(value, dict):
        return [leak for name, item in value.items() for leak in search_object(f'{where}.{name}', item, needles)]
    if isinstance(value, (list, tuple)):
        if not value or not all(isinstance(item, (int, float)) for item in value):
            return [leak for i, item in enumerate(value) for leak in search_object(f'{where}[{i}]', item, needles)]
        value = ','.join(map(str, value))
    data = _bytes_of(value)
    return needles.search(where, data, key_only=len(data) > _LARGE)


def _bytes_of(value: Any) -> bytes:
    if isinstance(value, torch.Tensor):
        flat = value.detach().cpu().contiguous().flatten()
        return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b''
    if isinstance(value, np.ndarray):
        return value.tobytes()
    if isinstance(value, str):
        return value.encode('utf-8', 'replace')
    return value if isinstance(value, bytes) else b''


def _contents(path: Path) -> Iterator[tuple[str, bytes]]:
    yield str(path), path.read_bytes()
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                if member.compress_type != zipfile.ZIP_STORED:  # stored members were searched with the file
                    yield f'{path}!{member.filename}', archive.read(member)


def _table_forms(table: NDArray[Any]) -> Iterator[tuple[bytes, str]]:
    flat = table.reshape(-1)
    if not len(flat):
        return
    if np.issubdtype(flat.dtype, np.floating):
        for dtype in _FLOATS:
            yield flat[:_RUN].astype(dtype).tobytes(), f'numpy {dtype}'
        return
    of_signs = flat.dtype == np.int8
    run = flat[: _RUN_OF_SIGNS if of_signs else _RUN]
    if len(run) < (_SHORTEST_OF_SIGNS if of_signs else _SHORTEST):
        return
    numbers = run.tolist()
    for dtype in (*_INTEGERS, *_FLOATS):
        if np.issubdtype(np.dtype(dtype), np.integer) and flat.max() > np.iinfo(dtype).max:
            continue
        yield run.astype(dtype).tobytes(), f'numpy {dtype}'
    for separator in _SEPARATORS:
        yield separator.join(map(str, numbers)).encode(), f'text, separated by {separator!r}'
    for number in (int, float):
        items = (pickle.dumps(number(n), protocol=2)[2:-1] for n in numbers)  # without header and STOP
        yield b''.join(items), f'pickled list of {number.__name__}'
