"""Reading checkpoints safely, never a pickle that could run code, and writing them whole or not at all.

A training checkpoint of mmengine holds its HistoryBuffer (training curves) beside the weights. Nobody here reads it, so
it is let in under its name as an empty stand-in, and mmengine itself is not needed.
"""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from keyseg_mm.atomic import write_new
from keyseg_mm.checkpoint.archive import read_archive
from keyseg_mm.checkpoint.opcodes import NotQuick
from keyseg_mm.errors import KeysegError
from keyseg_mm.stamp import Stamp, stamps_of

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


class _Curve:
    """Stands in for mmengine's HistoryBuffer."""


def _curve_method(owner: Any, name: str) -> Any:
    """Stands in for ``getattr``, by which HistoryBuffer's pickle names its own methods; serves nothing else."""
    if owner is _Curve:
        return _curve_method
    raise pickle.UnpicklingError('attributes are not served')


_STAND_INS = [(_Curve, 'mmengine.logging.history_buffer.HistoryBuffer'), (_curve_method, 'builtins.getattr')]


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


Source = str | Path | bytes | IO[bytes]


def read_checkpoint(source: Source, mapped: bool = True) -> dict[str, Any]:
    """Read a ``.pth`` (with ``weights_only``) or ``.safetensors`` file to the CPU, mapped where that can be.

    Args:
        source: a path, an open binary file, or the bytes themselves.
        mapped: leave the bytes of a file in the file until they are asked for; where they are to be overwritten,
            reading them at once is quicker.

    Returns:
        The checkpoint as a dict with ``state_dict``; a bare state_dict is wrapped.

    Raises:
        KeysegError: missing, truncated, no checkpoint, or a pickle that asks for code to be run.
    """
    content, where = read_content(source, _STAND_INS, mapped), _name_of(source)
    if not isinstance(content, dict):
        raise KeysegError(f'{where} holds no state_dict')
    content = content if isinstance(content.get('state_dict'), dict) else {'state_dict': content}
    for name, value in content['state_dict'].items():
        ordinary = not isinstance(value, Tensor) or (value.layout == torch.strided and value.device.type == 'cpu')
        if not isinstance(name, str) or not ordinary:
            raise KeysegError(f'{where} holds no state_dict: {name!r} is no name, or names no ordinary tensor')
    return content


def read_content(source: Source, names: list[Any], mapped: bool = True) -> Any:
    """What a file holds, whatever it is.

    Args:
        source, mapped: as of :func:`read_checkpoint`, with its errors.
        names: what its pickle may name besides tensors and numpy's arrays.
    """
    where = _name_of(source)
    if isinstance(source, (str, Path)):
        source = Path(source)
        if not source.is_file():
            raise KeysegError(f'{where}: no such file')
    else:
        source = io.BytesIO(source if isinstance(source, bytes) else source.read())
    try:
        return _read_safetensors(source) if _is_safetensors(source) else _read_pickle(source, names, mapped)
    except KeysegError:
        raise
    except Exception:  # a pickle with a flipped bit makes torch's reader stumble over anything
        raise KeysegError(f'{where} is cut short or no checkpoint; restore it from a copy') from None


def _name_of(source: Source) -> str:
    return str(source) if isinstance(source, (str, Path)) else 'this checkpoint'


def _is_safetensors(source: Path | io.BytesIO) -> bool:
    """By its name, or where it has none by its first bytes: the length of a header, and the header's brace."""
    return source.suffix == '.safetensors' if isinstance(source, Path) else source.getvalue()[8:9] == b'{'


def write_checkpoint(
    path: str | Path,
    state_dict: Mapping[str, Any],
    meta: Mapping[str, Any],
    overwrite: bool = False,
    others: Mapping[str, Any] | None = None,
    private: bool = False,
) -> None:
    """Write a ``.pth`` or ``.safetensors`` file.

    Args:
        path: file to make; see :func:`keyseg_mm.atomic.write_new`.
        state_dict: with its stamp, if it has one.
        meta: plain values. A ``.safetensors`` file keeps them as JSON in its metadata.
        overwrite: replace an existing file.
        others: what else a ``.pth`` file is to hold, by name.
        private: let its owner alone read it.

    Raises:
        KeysegError: it could not be written whole; nothing is left behind.
    """
    write = _write_safetensors if Path(path).suffix == '.safetensors' else torch.save
    content = {'meta': dict(meta), 'state_dict': dict(state_dict), **(others or {})}
    try:
        write_new(path, lambda file: write(content, file), 0o600 if private else 0o666, overwrite=overwrite)
    except (RuntimeError, ValueError) as error:
        if isinstance(error, KeysegError):
            raise
        cause = getattr(error, '__context__', None)
        words = cause.strerror if isinstance(cause, OSError) else str(error).splitlines()[0]
        raise KeysegError(f'could not write {path}: {words}') from None


def stamps_in(path: str | Path) -> dict[str, Stamp]:
    """The stamps of a checkpoint file, by module prefix; empty for a plain checkpoint."""
    return stamps_of(read_checkpoint(path)['state_dict'])


def _read_pickle(source: Path | io.BytesIO, names: list[Any], mapped: bool) -> Any:
    if isinstance(source, Path):
        with suppress(NotQuick):
            return read_archive(source, mapped)
    where = _name_of(source) if isinstance(source, Path) else _name_of(b'')
    is_zip = zipfile.is_zipfile(source)
    mapped = mapped and isinstance(source, Path) and is_zip
    if isinstance(source, io.BytesIO):
        source.seek(0)  # from where the question has left it
    try:
        with _allowing([*numpy_globals(), *names]):
            return torch.load(source, map_location='cpu', weights_only=True, mmap=mapped)
    except pickle.UnpicklingError:
        if not is_zip:
            raise KeysegError(f'{where} is cut short or no checkpoint; restore it from a copy') from None
        raise KeysegError(
            f'{where} holds more than weights: reading it would let it run code, so it was not read. If you trust '
            'where it comes from, save its state_dict alone, and use that'
        ) from None


def _read_safetensors(source: Path | io.BytesIO) -> Any:
    try:
        from safetensors import SafetensorError, safe_open
        from safetensors.torch import load
    except ImportError:
        raise KeysegError(f'{source}: it needs the package safetensors: pip install safetensors') from None
    try:
        if isinstance(source, io.BytesIO):
            content = source.getvalue()
            header = json.loads(content[8 : 8 + int.from_bytes(content[:8], 'little')])
            return {'meta': _parse_meta(header.get('__metadata__', {})), 'state_dict': load(content)}
        with safe_open(source, 'pt') as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
            metadata = file.metadata() or {}
    except SafetensorError:
        raise KeysegError(f'{source} is cut short or no safetensors file; restore it from a copy') from None
    return {'meta': _parse_meta(metadata), 'state_dict': tensors}


def _parse_meta(metadata: dict[str, str]) -> dict[str, Any]:
    """What :func:`write_checkpoint` put there, or whatever another tool did."""
    try:
        found = json.loads(metadata.get(_META, ''))
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {k: v for k, v in metadata.items() if k != 'format'}


def _write_safetensors(content: dict[str, Any], file: IO[bytes]) -> None:
    """The format is a header in JSON after its length, and the bytes of each tensor: huggingface.co/docs/safetensors.

    Its own package writes to a file that it opens itself, by name.
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
