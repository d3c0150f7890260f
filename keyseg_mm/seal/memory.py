"""Where the values of tensors lie in memory: whether they are bytes that can be sealed there, and overwritten."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from keyseg_mm.errors import LockError

_WRITABLE = 0x200  # PyBUF_WRITE
_memory = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int)(
    ('PyMemoryView_FromMemory', ctypes.pythonapi)
)
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

#: Is given bytes, and where in memory those lie that they replace.
Put = Callable[[int, memoryview], object]


class ScatteredError(LockError):
    """Tensors that do not lie in memory one by one, so that their bytes there cannot be exchanged."""


def why_not(tensor: Tensor) -> str:
    """Why a tensor has no bytes of its own that could be sealed; empty where it has."""
    if type(tensor) not in (Tensor, nn.Parameter):
        return f'a {type(tensor).__name__}: take the ordinary tensor out of it'
    if tensor.is_meta:
        return 'a meta tensor, without values'
    if tensor.is_nested or tensor.layout != torch.strided:
        return f'its layout is {tensor.layout}: make it dense'
    return 'quantised: keep its integers and its scales' if tensor.is_quantized else ''


def ordinary(tensor: Tensor) -> Tensor:
    """A tensor's values on the CPU, one by one in the order of their indices: itself, if it has them so."""
    found = tensor.detach().resolve_conj().resolve_neg().cpu()
    if found.is_contiguous():
        return found
    bits = _BITS.get(found.element_size())
    return found.view(bits).contiguous().view(found.dtype) if bits else found.contiguous()


def alone(tensors: Mapping[str, Tensor]) -> list[str]:
    """Tensors that fill the memory they lie in, alone: what else lay there would be written in the open, or lost."""
    owners: dict[int, list[str]] = {}
    for name, t in tensors.items():
        owners.setdefault(t.untyped_storage().data_ptr(), []).append(name)
    only = [names[0] for names in owners.values() if len(names) == 1]
    return [name for name in only if _lies_plain(t := tensors[name]) and t.nbytes == t.untyped_storage().nbytes()]


def _lies_plain(tensor: Tensor) -> bool:
    """Whether a tensor's bytes lie in the CPU's memory as they are."""
    plain = tensor.layout == torch.strided and tensor.is_cpu and tensor.is_contiguous()
    return plain and not tensor.is_conj() and not tensor.is_neg()


def fitting(tensors: Mapping[str, Tensor], into: Mapping[str, Tensor], own: bool) -> dict[str, Tensor]:
    """Where each tensor can be opened: in given memory, or in its own. None of it may overlap what else is used."""
    wanted = {name: into[name] for name, t in tensors.items() if name in into and _takes(into[name], t)}
    spans = [(*_span(t), 'from', name) for name, t in tensors.items() if t.is_cpu and t.numel()]
    spans += [(*_span(t), 'into', name) for name, t in wanted.items()]
    clashing = _clashing(spans)
    found = {name: t for name, t in wanted.items() if ('into', name) not in clashing} if clashing else wanted
    if own:
        for name, t in tensors.items():
            if name not in found and t.numel() and ('from', name) not in clashing and _lies_plain(t):
                found[name] = t.detach()
    return found


def refuse_scattered(tensors: Mapping[str, Tensor]) -> None:
    """Make sure that the bytes of each tensor lie in memory for themselves.

    Raises:
        ScatteredError: they do not.
    """
    found = fitting(tensors, {}, own=True)
    if any(t.numel() and name not in found for name, t in tensors.items()):
        raise ScatteredError('the tensors of this file do not lie in it one by one')


def _takes(room: Any, tensor: Tensor) -> bool:
    plain = isinstance(room, Tensor) and not why_not(room) and _lies_plain(room)
    return plain and room.dtype == tensor.dtype and room.shape == tensor.shape and bool(room.numel())


def _span(tensor: Tensor) -> tuple[int, int]:
    """Where a tensor begins in memory, and where it ends."""
    start = tensor.data_ptr()
    if tensor.is_contiguous():
        return start, start + tensor.nbytes
    steps = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride()))
    return start, start + (steps + 1) * tensor.element_size()


def _clashing(spans: list[tuple[int, int, str, str]]) -> set[tuple[str, str]]:
    """Those of several spans that overlap others."""
    clashing: set[tuple[str, str]] = set()
    furthest, owner = 0, ('', '')
    for start, stop, kind, name in sorted(spans):
        if start < furthest:
            clashing |= {(kind, name), owner}
        if stop > furthest:
            furthest, owner = stop, (kind, name)
    return clashing


def bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a tensor that lies plain, whatever its dtype. Who uses it keeps the tensor.

    It costs a tenth of the way through numpy, which is felt where a model has a thousand tensors.
    """
    if not _lies_plain(tensor):
        raise ValueError('its bytes do not lie in memory as they are')
    size = tensor.nbytes
    view: memoryview = _memory(tensor.data_ptr(), size, _WRITABLE) if size else memoryview(b'')
    return view
