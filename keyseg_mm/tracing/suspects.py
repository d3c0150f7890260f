"""Reading a file that somebody else wrote: whatever of it may be weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from keyseg_mm.checkpoint.files import read_checkpoint
from keyseg_mm.errors import KeysegError


def read_suspect(path: str | Path) -> dict[str, Any]:
    """The tensors of a ``.pth``, ``.safetensors`` or ``.onnx`` file, by name.

    Raises:
        KeysegError: it cannot be read, or the package for it is missing.
    """
    if Path(path).suffix == '.onnx':
        return _read_onnx(Path(path))
    found: dict[str, Any] = read_checkpoint(path)['state_dict']
    return found


def _read_onnx(path: Path) -> dict[str, Any]:
    """Initialisers, and constants of the graph: exporters write weights as the one or the other."""
    try:
        import onnx
    except ImportError:
        raise KeysegError("reading .onnx files takes the package onnx: pip install 'keyseg-mm[export]'") from None
    try:
        graph = onnx.load(str(path)).graph
        tensors = {item.name: onnx.numpy_helper.to_array(item) for item in graph.initializer}
        for node in graph.node:
            for attribute in node.attribute if node.op_type == 'Constant' else ():
                if attribute.name == 'value':
                    tensors[node.output[0]] = onnx.numpy_helper.to_array(attribute.t)
        bare = {n: a.astype('float32') if a.dtype.name == 'bfloat16' else a.copy() for n, a in tensors.items()}
        return {name: torch.from_numpy(array) for name, array in bare.items() if array.dtype.kind in 'fiu'}
    except Exception:  # a damaged file stumbles over anything
        raise KeysegError(f'{path} is cut short or no ONNX model; restore it from a copy') from None
