"""The quick reader of ``.pth`` files reads what ``torch.load`` reads, and of anything else it runs nothing."""

from __future__ import annotations

import os
import pickle
import struct
import zipfile
from collections import OrderedDict

import pytest
import torch
from torch import nn

from keyseg_mm.checkpoint.archive import read_archive
from keyseg_mm.checkpoint.files import read_checkpoint
from keyseg_mm.checkpoint.opcodes import NotQuick, unpickle
from keyseg_mm.errors import KeysegError

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


@pytest.mark.parametrize('mapped', [True, False])
def test_it_reads_what_torch_reads(mapped, tmp_path):
    torch.save(everything(), tmp_path / 'a.pth')
    found, right = read_archive(tmp_path / 'a.pth', mapped), torch.load(tmp_path / 'a.pth', weights_only=True)
    assert same(found, right) and same(found, everything()) and not same(found['meta'], found['tensors'])
    assert found['state_dict']._metadata == right['state_dict']._metadata != {}
    tensors = found['tensors']
    tensors['base'][0, 0] = 7  # memory is shared as it was, and is not the file's
    assert tensors['same'][0, 0] == tensors['turned'][0, 0] == 7
    assert same(read_archive(tmp_path / 'a.pth', mapped), right)


class Runs:
    """A pickle that asks for code to be run."""

    def __reduce__(self):
        return os.mkdir, ('ran',)


def archive(path, content: bytes, data: bytes = bytes(16)) -> None:
    """A ``.pth`` file with a pickle of one's own."""
    with zipfile.ZipFile(path, 'w') as made:
        made.writestr('a/data.pkl', content)
        made.writestr('a/data/0', data)


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
}


@pytest.mark.parametrize('why', HOSTILE)
def test_of_anything_else_it_runs_nothing(why, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    archive('bad.pth', HOSTILE[why])
    with pytest.raises(NotQuick):
        read_archive(tmp_path / 'bad.pth')
    with pytest.raises(KeysegError):
        read_checkpoint(tmp_path / 'bad.pth')
    assert not (tmp_path / 'ran').exists()


def test_a_good_view_is_read(tmp_path):
    archive(tmp_path / 'good.pth', view((2, 2), (1, 2), 0), struct.pack('<4f', 1, 2, 3, 4))
    assert read_archive(tmp_path / 'good.pth').tolist() == [[1, 3], [2, 4]]


def test_a_number_in_a_file_decides_of_no_memory():
    far = b'\x80\x02Nr' + struct.pack('<I', 2**32 - 1) + b'.'  # Python's own unpickler in C would ask for gigabytes
    assert unpickle(far, {}, lambda _: None) is None


def test_what_torch_alone_reads_is_left_to_it(tmp_path):
    content = {'state_dict': {'w': nn.Parameter(torch.ones(2)), 'f8': torch.ones(2).to(torch.float8_e4m3fn)}}
    torch.save(content, tmp_path / 'odd.pth')
    with pytest.raises(NotQuick):
        read_archive(tmp_path / 'odd.pth')
    assert set(read_checkpoint(tmp_path / 'odd.pth')['state_dict']) == {'w', 'f8'}
