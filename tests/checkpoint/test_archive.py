"""The reader of ``.pth`` files reads what ``torch.save`` writes, and of anything else it runs nothing."""

from __future__ import annotations

import os
import pickle
import struct
from collections import Counter, OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from keyseg_mm.checkpoint.files import read_checkpoint, read_content
from keyseg_mm.checkpoint.known import UnreadableError
from keyseg_mm.checkpoint.opcodes import unpickle
from keyseg_mm.errors import KeysegError
from tests.support.hostile import DTYPE, archive, array, named

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64, torch.complex128]
NUMBERS = [0, 255, 65535, -1, 2**40, -(2**70)]
DTYPES += [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool]


def everything() -> dict:
    torch.manual_seed(0)
    base = torch.randn(6, 4)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    tensors = {str(dtype): torch.randn(3, 2).to(dtype) for dtype in DTYPES}
    shared = {'base': base, 'same': base, 'turned': base.T, 'slice': base[2:5, 1], 'scalar': torch.tensor(3.5)}
    empty = {'empty': torch.empty(0, 3), 'wide': torch.arange(4.0).expand(3, 4)}
    plain = {
        'n': None,
        't': True,
        'f': False,
        'i': NUMBERS,
        'x': (1, (), (2.5, 'ä', b'')[:2]),
    }
    return {'state_dict': model.state_dict(), 'tensors': {**tensors, **shared, **empty}, 'meta': plain}


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        alike = (a.dtype, a.shape, a.stride()) == (b.dtype, b.shape, b.stride())
        return alike and (a.numel() == 0 or torch.equal(a, b))
    if isinstance(a, dict):
        return type(a) is type(b) and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize('mapped', [True, False])
def test_it_reads_what_torch_reads(mapped, zipped, tmp_path):
    torch.save(everything(), tmp_path / 'a.pth', _use_new_zipfile_serialization=zipped)
    found, right = read_content(tmp_path / 'a.pth', mapped=mapped), torch.load(tmp_path / 'a.pth', weights_only=True)
    assert same(found, right) and same(found, everything()) and not same(found['meta'], found['tensors'])
    assert found['state_dict']._metadata == right['state_dict']._metadata != {}
    tensors = found['tensors']
    tensors['base'][0, 0] = 7  # memory is shared as it was, and is not the file's
    assert tensors['same'][0, 0] == tensors['turned'][0, 0] == 7
    assert same(read_content(tmp_path / 'a.pth', mapped=mapped), right)
    assert same(read_content((tmp_path / 'a.pth').read_bytes()), right)


@pytest.mark.parametrize('zipped', [True, False])
def test_what_is_rare_in_checkpoints_is_read(zipped, tmp_path):
    made = {
        'parameter': nn.Parameter(torch.ones(2)),
        'grown': torch.ones(2, requires_grad=True),
        'arrays': [np.arange(6.0).reshape(2, 3), np.array(['ab', 'c']), np.array([True]), np.asfortranarray(np.eye(2))],
        'big-endian': np.array([1, 2], '>i4'),
        'numbers': [np.float32(1.5), np.int64(7), np.bool_(True)],
        'rest': [{1, 2}, b'\xff\0', bytearray(b'ab'), 1 + 2j, Counter(a=3), torch.Size([2]), torch.float16],
    }
    if zipped:
        made['young'] = torch.arange(4.0).to(torch.float8_e4m3fn)
    torch.save(made, tmp_path / 'odd.pth', _use_new_zipfile_serialization=zipped)
    found = read_content(tmp_path / 'odd.pth')
    assert isinstance(found['parameter'], nn.Parameter) and found['parameter'].requires_grad
    assert found['grown'].requires_grad and torch.equal(found['grown'], made['grown'])
    for one, other in zip([*found['arrays'], found['big-endian']], [*made['arrays'], made['big-endian']]):
        assert np.array_equal(one, other) and one.dtype == other.dtype.newbyteorder('=')
        assert one.flags.f_contiguous == other.flags.f_contiguous
    assert found['numbers'] == made['numbers'] and list(map(type, found['numbers'])) == list(map(type, made['numbers']))
    assert found['rest'] == made['rest']
    assert not zipped or torch.equal(found['young'].float(), made['young'].float())


def test_a_place_that_suits_no_numbers_is_read_too(tmp_path):
    """Other tools write zip archives without the gaps that torch leaves."""
    archive(tmp_path / 'a.pth', view((2,), (1,), 0, 2), struct.pack('<2f', 1, 2), gap=b'x')
    assert read_content(tmp_path / 'a.pth').tolist() == [1, 2]


class Runs:
    """A pickle that asks for code to be run."""

    def __reduce__(self):
        return os.mkdir, ('ran',)


def view(size: tuple, stride: tuple, offset: int, count: int = 4) -> bytes:
    """A pickle of a tensor over sixteen bytes of floats."""
    import torch._utils

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return ('storage', torch.FloatStorage, '0', 'cpu', count) if value == 'here' else None

    import io

    class View:
        def __reduce__(self):
            return torch._utils._rebuild_tensor_v2, ('here', offset, size, stride, False, OrderedDict())

    file = io.BytesIO()
    Pickler(file, 2).dump(View())
    return file.getvalue()


HOSTILE = {
    'code': pickle.dumps({'state_dict': Runs()}, 2),
    'code, a later protocol': pickle.dumps({'state_dict': Runs()}, 4),
    'a name that is none of ours': b'\x80\x02cbuiltins\neval\nX\x01\x00\x00\x001\x85R.',
    'an attribute': b'\x80\x02cbuiltins\ngetattr\n.',
    'beyond the storage': view((5,), (1,), 0),
    'beyond the storage, by strides': view((2,), (4,), 0),
    'beyond the storage, by its start': view((1,), (1,), 4),
    'before the storage': view((1,), (1,), -1),
    'backwards': view((2,), (-1,), 3),
    'a size that is no number': view((2.0,), (1,), 0),
    'sizes without strides': view((2, 2), (1,), 0),
    'terabytes of one value': view((2**45,), (1,), 0),
    'a storage of another length': view((1,), (1,), 0, 5),
    'nothing': b'',
    'cut short': pickle.dumps({'a': [1, 2, 3]}, 2)[:-1],
    'an empty stack': b'\x80\x02.',
    'two results': b'\x80\x02NN.',
    'a mark too few': b'\x80\x02t.',
    'text longer than the file': b'\x80\x02X' + struct.pack('<I', 2**31) + b'a.',
    'a number of gigabytes': b'\x80\x02\x8b' + struct.pack('<I', 2**31) + b'.',
    'a memo that was never put': b'\x80\x02j' + struct.pack('<I', 7) + b'.',
    'values for a name': b'\x80\x02ccollections\nOrderedDict\n(X\x01\x00\x00\x00aNu.',
    'attributes for a dict': b'\x80\x02}}X\x01\x00\x00\x00aNsb.',
    'a call of a call': b'\x80\x02ccollections\nOrderedDict\n)R)R.',
    'a key that cannot be one': b'\x80\x02}]Ns.',
    'keys that clash': b'\x80\x02}('
    + b''.join(b'\x8a\x09' + (k * (2**61 - 1)).to_bytes(9, 'little') + b'N' for k in (1, 2))
    + b'u.',
    'code for a new object': named('posix', 'system') + b'X\x04\x00\x00\x00true\x85\x81.',
    'a method by way of a curve': b'\x80\x02'
    + named('builtins', 'getattr')[2:]
    + named('numpy', 'ndarray')[2:]
    + b'X\x06\x00\x00\x00tofile\x86R.',
    'a state for what takes none': named('torch', 'Size') + b'(K\x01t\x85R}b.',
    'a state that is no metadata': b'\x80\x02ccollections\nOrderedDict\n)R}X\x01\x00\x00\x00aNsb.',
    'metadata that are none': b'\x80\x02ccollections\nOrderedDict\n)R}X\x09\x00\x00\x00_metadata]sb.',
    'an old class': b'\x80\x02(X\x01\x00\x00\x00aiposix\nsystem\n.',
    'a type of objects': array(DTYPE.replace(b'f8', b'O8')),
    'a type of records': array(DTYPE.replace(b'NNN', b'NX\x01\x00\x00\x00a}')),
    'a state of a type that crashes numpy': array(DTYPE.replace(b'K\x03', b'J\xff\xff\xff\x7f'), shape=b'K\x02\x85'),
    'an array of another length': array(DTYPE, shape=b'K\x02\x85'),
    'an array without end': array(DTYPE, shape=b'\x8a\x08' + (2**62).to_bytes(8, 'little') + b'\x85'),
}


@pytest.mark.parametrize('why', HOSTILE)
def test_of_anything_else_it_runs_nothing(why, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    archive('bad.pth', HOSTILE[why])
    for act in (read_content, read_checkpoint):
        with pytest.raises(KeysegError, match='more than weights|cut short or no checkpoint'):
            act(tmp_path / 'bad.pth')
    assert not (tmp_path / 'ran').exists()


def test_what_is_asked_for_is_named(tmp_path):
    archive(tmp_path / 'bad.pth', HOSTILE['code'])
    with pytest.raises(KeysegError, match=r'more than weights \(posix.mkdir\)'):
        read_content(tmp_path / 'bad.pth')


def test_what_the_process_lets_torch_read_does_not_count(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    archive('bad.pth', HOSTILE['code'])
    with torch.serialization.safe_globals([os.mkdir, getattr, (os.mkdir, 'posix.mkdir')]), pytest.raises(KeysegError):
        read_content(tmp_path / 'bad.pth')
    assert not (tmp_path / 'ran').exists()


def test_good_views_and_arrays_are_read(tmp_path):
    archive(tmp_path / 'good.pth', view((2, 2), (1, 2), 0), struct.pack('<4f', 1, 2, 3, 4))
    assert read_content(tmp_path / 'good.pth').tolist() == [[1, 3], [2, 4]]
    archive(tmp_path / 'array.pth', array(DTYPE))
    assert read_content(tmp_path / 'array.pth').tolist() == [1.0]


def test_a_number_in_a_file_decides_of_no_memory():
    far = b'\x80\x02Nr' + struct.pack('<I', 2**32 - 1) + b'.'  # Python's own unpickler in C would ask for gigabytes
    assert unpickle(far, {}, lambda _: None) == (None, len(far))
    with pytest.raises(UnreadableError):
        unpickle(far[:-1], {}, lambda _: None)
