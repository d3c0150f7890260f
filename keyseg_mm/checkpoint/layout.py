"""How a ``.safetensors`` file is laid out: a header in JSON after its length, and the bytes of each tensor; no torch.

The format is that of huggingface.co/docs/safetensors. Its own package takes a header of 100 MB, and writes to a file
that it opens itself, by name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod
from typing import Any, NamedTuple

from keyseg_mm.checkpoint.known import UnreadableError

META = 'keyseg_mm meta'
#: How names of such files end; a sealed graph is one, see :mod:`keyseg_mm.deploy.container`.
SUFFIXES = ('.safetensors', '.sealed')
#: What a file calls a type of values: its name, and the bytes of a value.
DTYPES = {
    'F64': ('float64', 8),
    'F32': ('float32', 4),
    'F16': ('float16', 2),
    'BF16': ('bfloat16', 2),
    'F8_E4M3': ('float8_e4m3fn', 1),
    'F8_E5M2': ('float8_e5m2', 1),
    'C64': ('complex64', 8),
    'I64': ('int64', 8),
    'I32': ('int32', 4),
    'I16': ('int16', 2),
    'I8': ('int8', 1),
    'U8': ('uint8', 1),
    'BOOL': ('bool', 1),
}
_LONGEST_HEADER, _MOST_TENSORS, _MOST_DIMENSIONS = 16 * 2**20, 50_000, 32


class Row(NamedTuple):
    """Where a tensor is in a file.

    Attributes:
        dtype: name of the type of its values, as ``'float32'``.
        shape: its sizes.
        start, stop: its bytes.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def read_layout(data: Any) -> tuple[dict[str, Row], dict[str, Any]]:
    """The tensors of a file by name, and what it says of itself beside them.

    Args:
        data: all of it: bytes, or a map of the file.

    Raises:
        UnreadableError, ValueError, KeyError, TypeError: it is damaged, or none.
    """
    start = 8 + int.from_bytes(cut(data, 0, 8), 'little')
    if start - 8 > _LONGEST_HEADER:
        raise UnreadableError
    rows = json.loads(cut(data, 8, start), parse_constant=_refuse, object_pairs_hook=_each_once)
    meta = _parse_meta(rows.pop('__metadata__', {}))
    if len(rows) > _MOST_TENSORS:
        raise UnreadableError
    found = {name: _row(row, start) for name, row in rows.items()}
    at = start
    for row in sorted(found.values(), key=lambda row: (row.start, row.stop)):  # one behind the other, and nothing else
        if row.start != at:
            raise UnreadableError
        at = row.stop
    if at != len(data):
        raise UnreadableError
    return found, meta


def cut(data: Any, start: int, stop: int) -> bytes:
    """Bytes of a file.

    Raises:
        UnreadableError: it ends before.
    """
    if not 0 <= start <= stop <= len(data):
        raise UnreadableError
    return bytes(data[start:stop])


def _row(row: Mapping[str, Any], start: int) -> Row:
    (dtype, size), shape, (first, stop) = DTYPES[row['dtype']], row['shape'], row['data_offsets']
    right = all(type(n) is int and n >= 0 for n in (first, stop, *shape)) and len(shape) <= _MOST_DIMENSIONS
    if not right or set(row) != {'dtype', 'shape', 'data_offsets'} or stop - first != prod(shape) * size:
        raise UnreadableError
    return Row(dtype, tuple(shape), start + first, start + stop)


def _parse_meta(metadata: dict[str, str]) -> dict[str, Any]:
    """What was put there by this package, or whatever another tool did."""
    try:
        found = json.loads(metadata.get(META, ''))
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {k: v for k, v in metadata.items() if k != 'format'}


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise UnreadableError
    return found


def _refuse(_: str) -> Any:
    raise UnreadableError
