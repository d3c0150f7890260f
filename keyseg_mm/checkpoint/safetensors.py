"""Reading and writing ``.safetensors`` files, as :mod:`keyseg_mm.checkpoint.layout` has them."""

from __future__ import annotations

import json
from math import prod
from typing import IO, Any

import torch
from torch import Tensor

from keyseg_mm.checkpoint.filebytes import FileBytes
from keyseg_mm.checkpoint.layout import DTYPES, META, read_layout
from keyseg_mm.errors import KeysegError

_BY_DTYPE = {getattr(torch, dtype): name for name, (dtype, _) in DTYPES.items()}


def read_safetensors(content: FileBytes) -> dict[str, Any]:
    """What a file holds: ``state_dict`` and ``meta``.

    Raises:
        UnreadableError: it is damaged, or none.
    """
    rows, meta = read_layout(content.data)
    tensors = {
        name: content.tensor(getattr(torch, row.dtype), prod(row.shape), row.start).view(row.shape)
        for name, row in rows.items()
    }
    return {'meta': meta, 'state_dict': tensors}


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
    others = [n for n, value in state_dict.items() if not isinstance(value, Tensor) or value.dtype not in _BY_DTYPE]
    if others:
        raise KeysegError(f'a .safetensors file holds tensors of numbers only, not {others[0]}; write a .pth file')
    tensors = sorted(state_dict.items(), key=lambda item: (-item[1].element_size(), item[0]))  # so each is aligned
    header: dict[str, Any] = {'__metadata__': {'format': 'pt', META: json.dumps(meta, default=str)}}
    start = 0
    for name, tensor in tensors:
        stop = start + tensor.numel() * tensor.element_size()
        header[name] = {'dtype': _BY_DTYPE[tensor.dtype], 'shape': list(tensor.shape), 'data_offsets': [start, stop]}
        start = stop
    text = json.dumps(header).encode()
    text = text.ljust(-(-len(text) // 8) * 8)
    file.write(len(text).to_bytes(8, 'little') + text)
    for _, tensor in tensors:
        plain = tensor.detach().resolve_conj().resolve_neg().contiguous()
        file.write(plain.reshape(-1).view(torch.uint8).numpy().data)
