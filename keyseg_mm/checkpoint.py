"""Reading checkpoints safely: never a pickle that could run code, and clear errors for what cannot be read.

A training checkpoint of mmengine holds its HistoryBuffer (training curves) beside the weights. Nobody here reads it, so
it is let in under its name as an empty stand-in, and mmengine itself is not needed.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from keyseg_mm.errors import KeysegError
from keyseg_mm.plan import Plan, stamps_of


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
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        if isinstance(error, KeysegError):
            raise
        raise KeysegError(f'{path} is cut short or no checkpoint; restore it from a copy') from None
    if not isinstance(content, dict):
        raise KeysegError(f'{path} holds no state_dict')
    return content if isinstance(content.get('state_dict'), dict) else {'state_dict': content}


def stamps_in(path: str | Path) -> dict[str, Plan]:
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
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError:
        raise KeysegError(f'{path}: reading it needs the package safetensors: pip install safetensors') from None
    try:
        return load_file(path)
    except SafetensorError:
        raise KeysegError(f'{path} is cut short or no safetensors file; restore it from a copy') from None
