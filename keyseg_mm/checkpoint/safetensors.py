"""Reading and writing ``.safetensors`` files: a header in JSON after its length, and the bytes of each tensor.

The format is that of huggingface.co/docs/safetensors. Its own package takes a header of 100 MB, and writes to a file
that it opens itself, by name.
"""

from __future__ import annotations

import json
from math import prod
from typing import IO, Any

import torch
from torch import Tensor

from keyseg_mm.checkpoint.filebytes import FileBytes, cut
from keyseg_mm.checkpoint.known import UnreadableError
from keyseg_mm.errors import KeysegError

_META = 'keyseg_mm meta'
# what a .safetensors file calls them
_DTYPES = {
    torch.float64: 'F64',
    torch.float32: 'F32',
    torch.float16: 'F16',
    torch.bfloat16: 'BF16',
    torch.float8_e4m3fn: 'F8_E4M3',
    torch.float8_e5m2: 'F8_E5M2',
    torch.complex64: 'C64',
    torch.int64: 'I64',
    torch.int32: 'I32',
    torch.int16: 'I16',
    torch.int8: 'I8',
    torch.uint8: 'U8',
    torch.bool: 'BOOL',
}
_BY_NAME = {name: dtype for dtype, name in _DTYPES.items()}
_LONGEST_HEADER, _MOST_TENSORS, _MOST_DIMENSIONS = 16 * 2**20, 50_000, 32


def read_safetensors(content: FileBytes) -> dict[str, Any]:
    """What a file holds: ``state_dict`` and ``meta``.

    Raises:
        UnreadableError: it is damaged, or none.
    """
    start = 8 + int.from_bytes(cut(content.data, 0, 8), 'little')
    if start - 8 > _LONGEST_HEADER:
        raise UnreadableError
    rows = json.loads(cut(content.data, 8, start), parse_constant=_refuse, object_pairs_hook=_each_once)
    meta = _parse_meta(rows.pop('__metadata__', {}))
    if len(rows) > _MOST_TENSORS:
        raise UnreadableError
    tensors, left = {}, {}
    for name, row in rows.items():
        dtype, shape, (first, stop) = _BY_NAME[row['dtype']], row['shape'], row['data_offsets']
        right = all(type(n) is int and n >= 0 for n in (first, *shape)) and len(shape) <= _MOST_DIMENSIONS
        if not right or set(row) != {'dtype', 'shape', 'data_offsets'} or stop - first != prod(shape) * dtype.itemsize:
            raise UnreadableError
        tensors[name] = content.tensor(dtype, prod(shape), start + first).view(shape)
        left[name] = (first, stop)
    at = 0
    for first, stop in sorted(left.values()):  # one behind the other, and nothing else in the file
        if first != at:
            raise UnreadableError
        at = stop
    if start + at != len(content.data):
        raise UnreadableError
    return {'meta': meta, 'state_dict': tensors}


def _parse_meta(metadata: dict[str, str]) -> dict[str, Any]:
    """What :func:`write_checkpoint` put there, or whatever another tool did."""
    try:
        found = json.loads(metadata.get(_META, ''))
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {k: v for k, v in metadata.items() if k != 'format'}


def write_safetensors(content: dict[str, Any], file: IO[bytes]) -> None:
    """Write a file.

    Args:
        content: ``state_dict``, and ``meta`` of plain values, which are kept as JSON in its metadata.
        file: open for writing.

    Raises:
        KeysegError: it holds something else.
    """
    state_dict, meta = dict(content.pop('state_dict')), content.pop('meta', {})
    if content:
        raise KeysegError(f'a .safetensors file holds weights alone, not {", ".join(content)}; write a .pth file')
    others = [n for n, value in state_dict.items() if not isinstance(value, Tensor) or value.dtype not in _DTYPES]
    if others:
        raise KeysegError(f'a .safetensors file holds tensors of numbers only, not {others[0]}; write a .pth file')
    tensors = sorted(state_dict.items(), key=lambda item: (-item[1].element_size(), item[0]))  # so each is aligned
    header: dict[str, Any] = {'__metadata__': {'format': 'pt', _META: json.dumps(meta, default=str)}}
    start = 0
    for name, tensor in tensors:
        stop = start + tensor.numel() * tensor.element_size()
        header[name] = {'dtype': _DTYPES[tensor.dtype], 'shape': list(tensor.shape), 'data_offsets': [start, stop]}
        start = stop
    text = json.dumps(header).encode()
    text = text.ljust(-(-len(text) // 8) * 8)
    file.write(len(text).to_bytes(8, 'little') + text)
    for _, tensor in tensors:
        plain = tensor.detach().resolve_conj().resolve_neg().contiguous()
        file.write(plain.reshape(-1).view(torch.uint8).numpy().data)


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise UnreadableError
    return found


def _refuse(_: str) -> Any:
    raise UnreadableError
