"""Reading checkpoints safely: never a pickle that could run code, and clear errors for what cannot be read."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from keyseg_mm.errors import KeysegError
from keyseg_mm.plan import Plan, stamps_of


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
    try:
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
