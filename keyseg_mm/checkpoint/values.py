"""What the pickles of checkpoints name, and what is made in place of it: values, numpy's arrays, views of storages.

No function of Python, numpy or torch is called with what a file says before that was checked: numpy's own way to make
an array of a pickle crashes the interpreter on a crafted one.
"""

from __future__ import annotations

import re
from collections import Counter, OrderedDict
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from keyseg_mm.checkpoint.known import Known, Names, UnreadableError, check_keys

# what torch.save calls storages of these
_STORAGES = {
    'FloatStorage': torch.float32,
    'DoubleStorage': torch.float64,
    'HalfStorage': torch.float16,
    'BFloat16Storage': torch.bfloat16,
    'LongStorage': torch.int64,
    'IntStorage': torch.int32,
    'ShortStorage': torch.int16,
    'CharStorage': torch.int8,
    'ByteStorage': torch.uint8,
    'BoolStorage': torch.bool,
    'ComplexFloatStorage': torch.complex64,
    'ComplexDoubleStorage': torch.complex128,
}
# those that have no storage of their own, as far as this torch knows them
_YOUNGER = ('float8_e4m3fn', 'float8_e5m2', 'float8_e4m3fnuz', 'float8_e5m2fnuz', 'uint16', 'uint32', 'uint64')
_CODES = re.compile('b1|[iu][1248]|f(2|4|8|16)|c(8|16|32)|[SU][0-9]{1,6}')
_KINDS_WITH_ORDER = 'iufcU'
_MOST_DIMENSIONS, _LARGEST = 32, 2**48


class _Type:
    """Stands in for numpy's dtype while a pickle is read; says nothing before it was given its state."""

    def __init__(self, code: Any, *_: Any) -> None:
        if type(code) is not str or not _CODES.fullmatch(code):
            raise UnreadableError
        self.code, self.order = code, '='

    def take(self, state: Any) -> None:
        """The order of bytes; of a plain type there is nothing else to say."""
        _, self.order, *details = _a(state, tuple)
        if self.order not in ('<', '>', '|') or any(details[:3]):
            raise UnreadableError

    @property
    def dtype(self) -> np.dtype[Any]:
        """What it stands for."""
        return np.dtype((self.order if self.code[0] in _KINDS_WITH_ORDER else '') + self.code)


class _Curve:
    """Stands in for mmengine's HistoryBuffer, which nobody here reads."""


def _nothing(*_: Any) -> None:
    """Takes what nobody reads."""


def _array(kind: Any, shape: Any, code: Any) -> NDArray[Any]:
    """An array without its state, as numpy's pickles begin with."""
    return np.empty(0, np.int8)


def _fill_array(array: NDArray[Any], state: Any) -> None:
    _, shape, kind, is_fortran, data = _a(state, tuple)
    dtype = _a(kind, _Type).dtype
    if prod(_sizes(shape)) * dtype.itemsize != len(_a(data, bytes)):
        raise UnreadableError
    array.__setstate__((1, shape, dtype, _a(is_fortran, bool), data))


def _number(kind: Any, data: Any) -> Any:
    dtype = _a(kind, _Type).dtype
    if len(_a(data, bytes)) != dtype.itemsize:
        raise UnreadableError
    return np.frombuffer(data, dtype)[0]


def _ordered(pairs: Any = ()) -> OrderedDict[Any, Any]:
    items = [tuple(pair) for pair in _a(pairs, list, tuple)]
    if items:
        check_keys(key for key, _ in items)
    return OrderedDict(items)


def _describe(into: OrderedDict[Any, Any], state: Any) -> None:
    """What torch hangs on a state_dict: versions of modules, by name."""
    if set(_a(state, dict)) != {'_metadata'}:
        raise UnreadableError
    rows = {_a(name, str): dict(_a(row, dict)) for name, row in _a(state['_metadata'], dict, OrderedDict).items()}
    if any(type(value) not in (int, bool, type(None)) for row in rows.values() for value in row.values()):
        raise UnreadableError
    vars(into)['_metadata'] = OrderedDict(rows)


def _set(items: Any) -> set[Any]:
    check_keys(_a(items, list))
    return set(items)


def _encoded(text: Any, coding: Any = 'latin1') -> bytes:
    """Bytes, as protocol 2 writes them."""
    if coding != 'latin1':
        raise UnreadableError
    found: bytes = _a(text, str).encode('latin1')
    return found


def _a(value: Any, *kinds: type) -> Any:
    if type(value) not in kinds:
        raise UnreadableError
    return value


def _sizes(sizes: Any) -> Any:
    if len(_a(sizes, tuple, list, torch.Size)) > _MOST_DIMENSIONS:
        raise UnreadableError
    for n in sizes:
        if type(n) is not int or not 0 <= n < _LARGEST:
            raise UnreadableError
    return sizes


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, requires_grad: Any = False, *rest: Any) -> Tensor:
    """A view of a storage, inside of it."""
    if not isinstance(storage, Tensor) or storage.dim() != 1 or any(rest[1:]):
        raise UnreadableError
    _sizes((offset,))
    if len(_sizes(size)) != len(_sizes(stride)):
        raise UnreadableError
    last = offset
    for n, step in zip(size, stride):
        last += (n - 1) * step
    if last >= storage.numel() and prod(size):
        raise UnreadableError
    found: Tensor = storage.as_strided(size, stride, offset)
    return found.requires_grad_() if requires_grad is True else found


def _young_tensor(storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, dtype: Any) -> Tensor:
    """A view of a storage of bytes."""
    if not isinstance(storage, Tensor) or storage.dtype != torch.uint8 or storage.numel() % dtype.itemsize:
        raise UnreadableError
    return _tensor(storage.view(_a(dtype, torch.dtype)), offset, size, stride, grad)


def _parameter(data: Any, requires_grad: Any, *_: Any) -> nn.Parameter:
    if not isinstance(data, Tensor):
        raise UnreadableError
    return nn.Parameter(data.detach(), requires_grad is True and data.is_floating_point())


def curve_names(curve: Known) -> dict[tuple[str, str], Known]:
    """What the pickle of mmengine's HistoryBuffer names: itself, and by ``getattr`` its methods, which it need not."""

    def method(owner: Any, name: Any) -> None:
        if owner is not curve or name not in ('current', 'max', 'mean', 'min'):
            raise UnreadableError

    return {
        ('mmengine.logging.history_buffer', 'HistoryBuffer'): curve,
        ('builtins', 'getattr'): Known(method),
    }


_ARRAYS = {'_reconstruct': Known(_array, np.ndarray, _fill_array), 'scalar': Known(_number)}
NAMES: Names = {
    ('collections', 'OrderedDict'): Known(_ordered, OrderedDict, _describe),
    ('collections', 'Counter'): Known(lambda counts={}: Counter(_a(counts, dict))),
    ('builtins', 'set'): Known(_set),
    ('builtins', 'complex'): Known(lambda real, imag: complex(_a(real, float), _a(imag, float))),
    ('builtins', 'bytearray'): Known(lambda data=b'': bytearray(_a(data, bytes))),
    ('_codecs', 'encode'): Known(_encoded),
    ('torch', 'Size'): Known(lambda sizes: torch.Size(_a(sizes, tuple))),
    ('torch', 'device'): Known(lambda *parts: ':'.join(map(str, parts))),
    ('torch._utils', '_rebuild_tensor'): Known(_tensor),
    ('torch._utils', '_rebuild_tensor_v2'): Known(_tensor),
    ('torch._utils', '_rebuild_tensor_v3'): Known(_young_tensor),
    ('torch._utils', '_rebuild_parameter'): Known(_parameter),
    ('torch._utils', '_rebuild_parameter_with_state'): Known(_parameter),
    ('torch.storage', 'UntypedStorage'): torch.uint8,
    ('numpy', 'ndarray'): None,
    ('numpy', 'dtype'): Known(_Type, _Type, _Type.take),
    **{(f'numpy.{core}.multiarray', name): known for core in ('core', '_core') for name, known in _ARRAYS.items()},
    **{('torch', name): dtype for name, dtype in _STORAGES.items()},
    **{('torch', str(dtype).removeprefix('torch.')): dtype for dtype in _STORAGES.values()},
    **{('torch', name): getattr(torch, name) for name in _YOUNGER if hasattr(torch, name)},
    **curve_names(Known(_Curve, _Curve, _nothing)),
}
