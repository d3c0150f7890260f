"""Reading checkpoints safely, never a pickle that could run code, and writing them whole or not at all.

A training checkpoint of mmengine holds its HistoryBuffer (training curves) beside the weights. Nobody here reads it, so
it is let in under its name as an empty stand-in, and mmengine itself is not needed.
"""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from keyseg_mm.atomic import write_new
from keyseg_mm.errors import KeysegError
from keyseg_mm.stamp import Stamp, stamps_of

_META = 'keyseg_mm meta'


class _Curve:
    """Stands in for mmengine's HistoryBuffer."""


def _curve_method(owner: Any, name: str) -> Any:
    """Stands in for ``getattr``, by which HistoryBuffer's pickle names its own methods; serves nothing else."""
    if owner is _Curve:
        return _curve_method
    raise pickle.UnpicklingError('attributes are not served')


def numpy_globals() -> list[Any]:
    """What the pickle of a numpy array or number names, under numpy 1's and numpy 2's paths."""
    core: Any = getattr(np, '_core', None) or np.core  # type: ignore[attr-defined]
    names: list[Any] = [np.ndarray, np.dtype]
    names += {type(np.dtype(t)) for t in (np.float64, np.float32, np.int64, np.int32, np.uint32)}
    for module in ('numpy.core.multiarray', 'numpy._core.multiarray'):
        names += [
            (core.multiarray._reconstruct, f'{module}._reconstruct'),
            (core.multiarray.scalar, f'{module}.scalar'),
        ]
    return names


@contextmanager
def _allowing(names: list[Any]) -> Iterator[None]:
    """Let exactly these through ``weights_only``, whatever else the process has allowed; older torch has no list."""
    serialization: Any = torch.serialization
    if not hasattr(serialization, 'get_safe_globals'):
        yield
        return
    kept = serialization.get_safe_globals()
    serialization.clear_safe_globals()
    serialization.add_safe_globals(names)
    try:
        yield
    finally:
        serialization.clear_safe_globals()
        serialization.add_safe_globals(kept)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a ``.pth`` (with ``weights_only``) or ``.safetensors`` file to the CPU.

    Returns:
        The checkpoint as a dict with ``state_dict``; a bare state_dict is wrapped.

    Raises:
        KeysegError: missing, truncated, no checkpoint, or a pickle that asks for code to be run.
    """
    path = Path(path)
    if not path.is_file():
        raise KeysegError(f'{path}: no such file')
    try:
        content = _read_safetensors(path) if path.suffix == '.safetensors' else _read_pickle(path)
    except KeysegError:
        raise
    except Exception:  # a pickle with a flipped bit makes torch's reader stumble over anything
        raise KeysegError(f'{path} is cut short or no checkpoint; restore it from a copy') from None
    if not isinstance(content, dict):
        raise KeysegError(f'{path} holds no state_dict')
    content = content if isinstance(content.get('state_dict'), dict) else {'state_dict': content}
    for name, value in content['state_dict'].items():
        ordinary = not isinstance(value, Tensor) or (value.layout == torch.strided and value.device.type == 'cpu')
        if not isinstance(name, str) or not ordinary:
            raise KeysegError(f'{path} holds no state_dict: {name!r} is no name, or names no ordinary tensor')
    return content


def write_checkpoint(
    path: str | Path, state_dict: Mapping[str, Any], meta: Mapping[str, Any], overwrite: bool = False
) -> None:
    """Write a ``.pth`` or ``.safetensors`` file with a model's weights and what is said of them, and nothing else.

    Args:
        path: file to make; see :func:`keyseg_mm.atomic.write_new`.
        state_dict: with its stamp, if it has one.
        meta: plain values. A ``.safetensors`` file keeps them as JSON in its metadata.
        overwrite: replace an existing file.

    Raises:
        KeysegError: it could not be written whole; nothing is left behind.
    """
    write = _write_safetensors if Path(path).suffix == '.safetensors' else _write_pickle
    try:
        write_new(path, lambda file: write(file, dict(state_dict), dict(meta)), overwrite=overwrite)
    except (RuntimeError, ValueError) as error:
        if isinstance(error, KeysegError):
            raise
        cause = getattr(error, '__context__', None)
        words = cause.strerror if isinstance(cause, OSError) else str(error).splitlines()[0]
        raise KeysegError(f'could not write {path}: {words}') from None


def stamps_in(path: str | Path) -> dict[str, Stamp]:
    """The stamps of a checkpoint file, by module prefix; empty for a plain checkpoint."""
    return stamps_of(read_checkpoint(path)['state_dict'])


def _read_pickle(path: Path) -> Any:
    stand_ins = [(_Curve, 'mmengine.logging.history_buffer.HistoryBuffer'), (_curve_method, 'builtins.getattr')]
    try:
        with _allowing([*numpy_globals(), *stand_ins]):
            return torch.load(path, map_location='cpu', weights_only=True)
    except pickle.UnpicklingError:
        if not zipfile.is_zipfile(path):
            raise KeysegError(f'{path} is cut short or no checkpoint; restore it from a copy') from None
        raise KeysegError(
            f'{path} holds more than weights: reading it would let it run code, so it was not read. If you trust '
            'where it comes from, save its state_dict alone, and use that'
        ) from None


def _read_safetensors(path: Path) -> Any:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError:
        raise KeysegError(f'{path}: it needs the package safetensors: pip install safetensors') from None
    try:
        with safe_open(path, 'pt') as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
            metadata = file.metadata() or {}
    except SafetensorError:
        raise KeysegError(f'{path} is cut short or no safetensors file; restore it from a copy') from None
    return {'meta': _parse_meta(metadata), 'state_dict': tensors}


def _parse_meta(metadata: dict[str, str]) -> dict[str, Any]:
    """What :func:`write_checkpoint` put there, or whatever another tool did."""
    try:
        found = json.loads(metadata.get(_META, ''))
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {k: v for k, v in metadata.items() if k != 'format'}


def _write_pickle(file: IO[bytes], state_dict: dict[str, Any], meta: dict[str, Any]) -> None:
    torch.save({'meta': meta, 'state_dict': state_dict}, file)


def _write_safetensors(file: IO[bytes], state_dict: dict[str, Any], meta: dict[str, Any]) -> None:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import save_file
    except ImportError:
        raise KeysegError('a .safetensors file needs the package safetensors: pip install safetensors') from None
    others = [name for name, value in state_dict.items() if not isinstance(value, Tensor)]
    if others:
        raise KeysegError(f'a .safetensors file holds tensors only, not {others[0]}; write a .pth file')
    seen: set[int] = set()
    for name, tensor in state_dict.items():  # the format has no tensors that share memory
        fresh = tensor.is_contiguous() and tensor.data_ptr() not in seen
        state_dict[name] = tensor if fresh else tensor.detach().clone(memory_format=torch.contiguous_format)
        seen.add(tensor.data_ptr())
    try:
        save_file(state_dict, file.name, {'format': 'pt', _META: json.dumps(meta, default=str)})
    except SafetensorError as error:  # how it says that the disk is full
        raise OSError(str(error)) from None
