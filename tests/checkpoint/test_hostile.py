"""Files that are small on the disk and have no end in memory, or lie about what they hold: an error in little time."""

from __future__ import annotations

import json
import struct
import zipfile
from functools import cache
from pathlib import Path

import pytest
import torch

from keyseg_mm.bind import stamp_tensor
from keyseg_mm.checkpoint.files import read_content
from keyseg_mm.checkpoint.operations import lock_file, seal_file, unlock_file
from keyseg_mm.checkpoint.rekeying import rekey_file
from keyseg_mm.entries import MapEntry
from keyseg_mm.errors import KeysegError
from keyseg_mm.seal.sections import Sealing
from keyseg_mm.stamp import Stamp
from tests.support.bounded import bounded
from tests.support.cli import keyseg
from tests.support.files import KEY, OTHER
from tests.support.hostile import archive, named

MANY = 400_000
STAMP = 'keyseg_stamp_protected_model_needs_key_' + KEY.id


@cache
def large_stamp() -> torch.Tensor:
    entries = tuple(MapEntry(f'in:a.{n}', 4, {'type': 'ChannelPermutation'}, (f'a.{n}.weight',)) for n in range(2000))
    return stamp_tensor(Stamp(KEY.id, bytes(16), entries))


def word(text: str) -> bytes:
    return b'X' + struct.pack('<I', len(text)) + text.encode()


def tensor(size: bytes, stride: bytes, kind: str = 'FloatStorage', count: int = 4) -> bytes:
    """A tensor over sixteen bytes, in a pickle that goes on."""
    storage = (
        b'(' + word('storage') + f'ctorch\n{kind}\n'.encode() + word('0') + word('cpu') + bytes([75, count]) + b'tQ'
    )
    rest = b'K\x00' + size + stride + b'\x89ccollections\nOrderedDict\n)Rt'
    return b'ctorch._utils\n_rebuild_tensor_v2\n(' + storage + rest + b'R'


def whole(number: int) -> bytes:
    return b'\x8a\x08' + number.to_bytes(8, 'little') + b'\x85'


def pickled(content: bytes):
    return lambda path: archive(path, b'\x80\x02' + content + b'.')


def saved(make):
    return lambda path: torch.save({'state_dict': {'a': make()}}, path)


def zipped(change):
    """A good file of torch's, with a change of the bytes of its directory."""

    def make(path: Path) -> None:
        torch.save({'state_dict': {'a': torch.ones(4), 'b': torch.zeros(4)}}, path)
        before = path.read_bytes()
        after = change(bytearray(before))
        assert after != before
        path.write_bytes(after)

    return make


def bomb(path: Path) -> None:
    with (
        zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as made,
        made.open('a/data.pkl', 'w', force_zip64=True) as file,
    ):
        for _ in range(256):
            file.write(bytes(2**20))


def twice(path: Path) -> None:
    archive(path, b'\x80\x02}.')
    with pytest.warns(UserWarning, match='Duplicate'), zipfile.ZipFile(path, 'a') as made:
        made.writestr('a/data.pkl', b'\x80\x02N.')


def crowded(path: Path) -> None:
    line = b'PK\1\2' + bytes(42)
    directory = line * MANY
    path.write_bytes(
        b'PK\3\4' + directory + struct.pack('<4s4H2LH', b'PK\5\6', 0, 0, 0xFFFF, 0xFFFF, len(directory), 4, 0)
    )


def at(place: bytes, offset: int, value: bytes):
    """Other bytes behind the first such place."""

    def change(content: bytearray) -> bytearray:
        start = content.index(place) + offset
        content[start : start + len(value)] = value
        return content

    return change


LAUGHS = (
    b'}'
    + word('state_dict')
    + b'](K\x01K\x01eq\0'
    + b''.join(b'](h%ch%ceq%c' % (n, n, n + 1) for n in range(60))
    + b's'
)
BAD_PTH = {
    'terabytes of one value': pickled(b'}' + word('a') + tensor(whole(2**43), b'K\x00\x85') + b's'),
    'a gigabyte of one value': pickled(b'}' + word('a') + tensor(whole(2**28), b'K\x00\x85') + b's'),
    'a stamp of terabytes': pickled(b'}' + word(STAMP) + tensor(whole(2**43), b'K\x00\x85', 'ByteStorage', 16) + b's'),
    'many large views': pickled(
        b'}(' + b''.join(word(f'{n}') + tensor(whole(2**24 + n), b'K\x00\x85') for n in range(99)) + b'u'
    ),
    'many large stamps': pickled(
        b'}('
        + b''.join(word(f'{n}.{STAMP}') + tensor(whole(2**22 - n), b'K\x00\x85', 'ByteStorage', 16) for n in range(60))
        + b'u'
    ),
    'many good stamps': lambda path: torch.save({f'{n}.{STAMP}': large_stamp() for n in range(2000)}, path),
    'many sections': lambda path: torch.save({f'{n}': {STAMP: large_stamp()} for n in range(2000)}, path),
    'beyond its storage': pickled(b'}' + word('a') + tensor(b'K\x05\x85', b'K\x01\x85') + b's'),
    'a dimension too many': pickled(
        b'}' + word('a') + tensor(b'(' + b'K\x01' * 99 + b't', b'(' + b'K\x00' * 99 + b't') + b's'
    ),
    'too many values': pickled(b'}(' + b''.join(word(f'{n}') + b'N' for n in range(MANY)) + b'u'),
    'too many tensors': pickled(
        b'}(' + word('a') + tensor(b')', b')') + b'q\0' + b''.join(word(f'{n}') + b'h\0' for n in range(MANY)) + b'u'
    ),
    'too many keys': pickled(b'}' + b''.join(b'J' + struct.pack('<i', n) + b'Ns' for n in range(MANY))),
    'deep': pickled(b']' * MANY + b'a' * (MANY - 1)),
    'holds itself': pickled(b'}' + word('state_dict') + b'}q\0' + word('a') + b'h\0ss'),
    'a list of lists without end': pickled(LAUGHS),
    'a long text often': pickled(b'}' + word('meta') + b'](' + word('a' * 2**20) + b'q\0' + b'h\0' * 9999 + b'es'),
    'a number without end': pickled(b'}' + word('a') + b'\x8b' + struct.pack('<I', 4) + bytes(4) + b's'),
    'compressed': bomb,
    'a part twice': twice,
    'too many parts': crowded,
    'encrypted': zipped(at(b'PK\1\2', 8, b'\x09')),
    'a part in another': zipped(at(b'PK\1\2', 42, b'\x40')),
    'fewer lines than said': zipped(at(b'PK\6\6', 24, b'\x09')),
    'a part longer than the file': zipped(at(b'PK\1\2', 20, b'\xff\xff\xff\x7f\xff\xff\xff\x7f')),
    'sparse': saved(lambda: torch.eye(3).to_sparse()),
    'meta': saved(lambda: torch.ones(3, device='meta')),
    'quantised': saved(lambda: torch.quantize_per_tensor(torch.ones(3), 1.0, 0, torch.qint8)),
    'nested': saved(lambda: torch.nested.nested_tensor([torch.ones(1), torch.ones(2)])),
    'conjugate': saved(lambda: torch.ones(3, dtype=torch.complex64).conj()),
    'negative': saved(lambda: torch.ones(3, dtype=torch.complex64).conj().imag),
    'a subclass': saved(lambda: torch.nn.Buffer(torch.ones(3))),
}


def header(rows: str | bytes, data: bytes = bytes(16), length: int | None = None):
    text = rows if isinstance(rows, bytes) else rows.encode()
    return lambda path: path.write_bytes((len(text) if length is None else length).to_bytes(8, 'little') + text + data)


def row(first=0, stop=16, shape='[4]', dtype='F32') -> str:
    return f'{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{first},{stop}]}}'


BAD_SAFETENSORS = {
    'a header longer than the file': header('{}', b'', 2**62),
    'a header of 100 MB': header(b'{' + b' ' * 100_000_000 + b'}', b''),
    'deep': header('{"a":' + '[' * 200_000 + ']' * 200_000 + '}'),
    'no JSON': header('{"a"'),
    'no dict': header('[]', b''),
    'a name twice': header(f'{{"a":{row()},"a":{row()}}}'),
    'bytes of two': header(f'{{"a":{row()},"b":{row()}}}'),
    'a gap': header(f'{{"a":{row(8, 24)}}}', bytes(24)),
    'more than there is': header(f'{{"a":{row(0, 32, "[8]")}}}'),
    'bytes behind': header(f'{{"a":{row()}}}', bytes(20)),
    'other sizes': header(f'{{"a":{row(shape="[5]")}}}'),
    'sizes below zero': header(f'{{"a":{row(shape="[-2,-2]")}}}'),
    'endless sizes': header(f'{{"a":{row(0, 0, "[" + "0," + "9" * 4000 + "]")}}}', b''),
    'sizes of 5,000 digits': header(f'{{"a":{row(shape="[" + "9" * 5000 + "]")}}}'),
    'sizes of no number': header(f'{{"a":{row(shape="[4.0]")}}}'),
    'infinity': header(f'{{"a":{row(stop="1e999")}}}'),
    'NaN': header(f'{{"a":{row(stop="NaN")}}}'),
    'another type': header(f'{{"a":{row(dtype="F33")}}}'),
    'meta that are none': header(f'{{"__metadata__":[1],"a":{row()}}}'),
    'deep meta': header(json.dumps({'__metadata__': {'keyseg_mm meta': '[' * 200_000}, 'a': json.loads(row())})),
    'too many tensors': header('{' + ','.join(f'"{n}":{row(0, 0, "[0]")}' for n in range(60_000)) + '}', b''),
}
CASES = {
    **{f'{why}.pth': make for why, make in BAD_PTH.items()},
    **{f'{why}.safetensors': make for why, make in BAD_SAFETENSORS.items()},
}


@pytest.mark.parametrize('case', CASES)
def test_a_clear_error_in_little_time_and_memory(case, tmp_path):
    path = tmp_path / f'bad{Path(case).suffix}'
    CASES[case](path)
    size = path.stat().st_size
    for act in (
        lambda: seal_file(path, Sealing(KEY), tmp_path / 'out.pth'),
        lambda: rekey_file(path, KEY, [OTHER], tmp_path / 'out.pth'),
    ):
        said = bounded(act, size, KeysegError)
        assert str(path) in said or 'the stamp in this checkpoint is damaged' in said, said
    assert not (tmp_path / 'out.pth').exists()


def test_what_is_only_large_is_read(tmp_path):
    """Views of one storage, one value many times, a history of a million steps."""
    base = torch.arange(6.0)
    content = {'state_dict': {'rows': base.view(2, 3), 'same': base, 'wide': torch.ones(1).expand(1000, 1000)}}
    content['meta'] = {'numbers': list(range(50_000)), 'text': 'a' * 10_000_000}
    torch.save(content, tmp_path / 'a.pth')
    found = read_content(tmp_path / 'a.pth')
    assert found['meta'] == content['meta'] and torch.equal(found['state_dict']['wide'], torch.ones(1000, 1000))
    assert found['state_dict']['rows'].data_ptr() == found['state_dict']['same'].data_ptr()


@pytest.mark.parametrize('value', [1, None, b'y', [torch.ones(1)], {'a': 1}, torch.ones(3, 0), torch.tensor(1.0)])
@pytest.mark.parametrize('name', ['backbone.bn1.weight', 'backbone.bn1.num_batches_tracked', '\x1b'])
def test_odd_values_are_errors_or_kept(name, value, made, model, plan, tmp_path):
    out, found = tmp_path / 'out.pth', []
    for of in ('plain', 'locked'):
        content = torch.load(made / f'{of}.pth', weights_only=True)
        content['state_dict'][name], content['meta'] = value, value
        torch.save(content, tmp_path / 'odd.pth')
        for act in (
            lambda: seal_file(tmp_path / 'odd.pth', Sealing(KEY), out, overwrite=True),
            lambda: lock_file(tmp_path / 'odd.pth', model, plan, KEY, out, overwrite=True),
            lambda: unlock_file(tmp_path / 'odd.pth', KEY, out, overwrite=True),
            lambda: rekey_file(tmp_path / 'odd.pth', KEY, [OTHER], out, overwrite=True),
        ):
            try:
                act()
            except KeysegError as error:
                found.append(str(error))
    assert found


NUMBERS = ['NaN', 'Infinity', '-Infinity', '1e999', '9' * 5000, '[' * 100_000, '"' + 'a' * 5_000_000 + '"']


@pytest.mark.parametrize('number', range(len(NUMBERS)))
def test_numbers_of_a_stamp_that_have_no_end(number):
    good = Stamp(KEY.id, bytes(16), ()).to_json()
    for field in ('"version":1', '"entries":[]'):
        bad = good.replace(field, field.split(':')[0] + ':' + NUMBERS[number])
        assert bad != good
        assert 'stamp' in bounded(lambda bad=bad: Stamp.from_bytes(bad.encode()), len(bad), KeysegError)


# ---- texts of a file


STEERING = 'a\x1b]0;title\x07\u202eb\r\x9b31m\udcff'


def test_what_a_file_says_steers_no_terminal(tmp_path, capsys):
    path = tmp_path / f'{STEERING[:-1]}.pth'
    archive(path, named('os\x1b[31m', 'system') + b'.')
    assert keyseg('show', path) == 1
    weights = {STEERING[:-1]: torch.ones(2)}
    torch.save({'state_dict': weights, STEERING[:-1]: object}, path)
    assert keyseg('show', path) == 1
    torch.save({'state_dict': weights}, path)
    assert keyseg('show', path) == 0
    said = ''.join(capsys.readouterr())
    assert 'a\\x1b]0;title\\x07\\u202eb' in said
    assert all(sign.isprintable() or sign == '\n' for sign in said)
    assert str(KeysegError(f'bad: {STEERING}')) == 'bad: a\\x1b]0;title\\x07\\u202eb\\r\\x9b31m\\udcff'
