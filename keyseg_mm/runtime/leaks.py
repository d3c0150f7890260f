"""Looking for a key, and for all that is derived from it, in what a run wrote.

Looked for are the key, a model's secret, a file's content key and the subkey of each map, in each way to write 32
bytes; and every table, as numbers of each width, as text, pickled. See :mod:`keyseg_mm.runtime.needles`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from keyseg_mm.bind import derive_cipher, derive_map, derive_order, map_subkey
from keyseg_mm.errors import KeysegError
from keyseg_mm.keys.identity import Key
from keyseg_mm.keys.key import FeatureSecret, Material
from keyseg_mm.keys.secret import Secret, unseen
from keyseg_mm.runtime.haystack import Leak, Search, files_in, search_file
from keyseg_mm.runtime.needles import OVERLAP, Form, Pile, forms_of_secret, forms_of_table
from keyseg_mm.stamp import Stamp
from keyseg_mm.wrapping import open_envelope

__all__ = ['Leak', 'Needles', 'find_leaks', 'search_object']

_LARGE = 2**20  # bytes


class Needles(Secret):
    """What to look for.

    Args:
        key: the secret key.
        stamps: stamps whose secrets and tables are to be looked for too.
    """

    __slots__ = ('_secrets', '_pile', '_id')

    @unseen
    def __init__(self, key: Key, stamps: Iterable[Stamp] = ()) -> None:
        self._id = key.id
        self._secrets: list[Material] = [key]
        self._pile = Pile(self._forms(key, list(stamps)))

    @property
    def public_id(self) -> str:
        return f'of {self._id}'

    @property
    def pile(self) -> Pile:
        """All needles, to be found at once."""
        return self._pile

    def _forms(self, key: Key, stamps: Iterable[Stamp]) -> Iterator[tuple[str, Form]]:
        yield from _secret('the key', key.material)
        for stamp in stamps:
            features = key.features(stamp.salt)
            if stamp.recipients and key.id in stamp.key_ids:
                secrets = open_envelope(key, stamp)
                features = secrets.features
                if secrets.content is not None:
                    yield from _secret("the file's content key", secrets.content.material)
            self._secrets.append(features)
            yield from _secret("the model's secret", features.material)
            for entry in stamp.maps:
                yield from _secret(f'the subkey at {entry.point}', map_subkey(features, stamp.salt, entry))
            for where, tables in _tables(key, features, stamp):
                for name, table in tables.items():
                    yield from ((f'the {name} {where}', form) for form in forms_of_table(table))

    @unseen
    def search(self, where: str, haystack: bytes | memoryview, key_only: bool = False) -> list[Leak]:
        """All needles found in some bytes; ``key_only`` looks for the raw keys alone, which is quick."""
        if key_only:
            data = bytes(haystack)
            found = {f'{type(secret).__name__} (raw)' for secret in self._secrets if secret.material in data}
        else:
            view = memoryview(haystack)
            starts = range(0, max(1, len(view)), _LARGE)
            found = set().union(*(self._pile.find(view[start : start + _LARGE + OVERLAP]) for start in starts))
        return [Leak(where, what) for what in sorted(found)]


def _secret(what: str, raw: bytes) -> Iterator[tuple[str, Form]]:
    return ((what, form) for form in forms_of_secret(raw))


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
    """Search every file below a folder (or one file) for the key and for the secrets and tables of the stamps.

    Args:
        folder: what to search.
        key: the secret key.
        stamps: of the protected models; see :func:`keyseg_mm.stamp.stamps_of`.

    Returns:
        What was found; empty is good.

    Raises:
        KeysegError: something could not be read.
    """
    needles, search = Needles(key, stamps), Search()
    for path in files_in(folder, search):
        search_file(path, needles.pile, search)
    if search.unread:
        raise KeysegError(f'not all of {folder} could be searched: {"; ".join(search.unread)}')
    return sorted(search.leaks)


def search_object(where: str, value: Any, needles: Needles) -> list[Leak]:
    """Search a checkpoint in memory: nested dicts, sequences and objects of tensors, arrays, texts, bytes and numbers.

    Tensors above 1 MiB, the weights of large layers, are searched for the raw keys only, to keep saving quick. All else
    is searched as one: what is spread over many small values is found too.
    """
    small, leaks = [], []
    for place, data in _values(where, value, {}):
        if len(data) > _LARGE:
            leaks += needles.search(place, data, key_only=True)
        else:
            small.append((place, data))
    if needles.search(where, b', '.join(data for _, data in small)):
        each = [leak for place, data in small for leak in needles.search(place, data)]
        leaks += each or needles.search(where, b', '.join(data for _, data in small))
    return leaks


def _values(where: str, value: Any, seen: dict[int, Any]) -> Iterator[tuple[str, bytes]]:
    """What is in a value, as bytes or text, with its place."""
    if isinstance(value, (torch.Tensor, np.ndarray, str, bytes, int, float, type(None))):
        yield where, _bytes_of(value)
    elif id(value) in seen:
        return
    elif isinstance(value, dict):
        seen[id(value)] = value
        for name, item in value.items():
            yield from _values(f'{where}.{name}', name, seen)
            yield from _values(f'{where}.{name}', item, seen)
    elif isinstance(value, (list, tuple, set)):
        seen[id(value)] = value
        numbers = bool(value) and all(isinstance(item, (int, float)) for item in value)
        if numbers:
            yield where, ','.join(map(str, value)).encode()
        for i, item in enumerate(() if numbers else value):
            yield from _values(f'{where}[{i}]', item, seen)
    else:
        seen[id(value)] = value
        yield from _values(where, getattr(value, '__dict__', None), seen)


def _bytes_of(value: Any) -> bytes:
    if isinstance(value, torch.Tensor):
        flat = value.detach().cpu().contiguous().flatten()
        return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b''
    if isinstance(value, np.ndarray):
        return value.tobytes()
    return value if isinstance(value, bytes) else str(value).encode('utf-8', 'replace')
