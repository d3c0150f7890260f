"""The file cipher on bytes: its format is fixed by vectors and read by an independent reader; no nonce comes twice."""

from __future__ import annotations

import json
import math
import threading
from unittest import mock

import pytest

from keyseg_mm.envelope import read_seal, write_seal
from keyseg_mm.errors import IntegrityError
from keyseg_mm.keys.key import SecretKey
from keyseg_mm.seal import chunks, cipher
from keyseg_mm.seal.cipher import Around, Buffer, open_buffers, seal_buffers
from keyseg_mm.seal.meta import plain_values
from keyseg_mm.seal.tensors import open_tensors
from tests.support.seals import CHUNK, SEALS, Refused, by_the_book, raw, stamp, tensors_of
from tests.vectors.seals import bad, good, shown

VECTORS = json.loads(SEALS.read_text())
KEY = SecretKey(bytes(32))


def opened(case):
    """The plain bytes of a vector, as the package opens it."""
    section = {**tensors_of(case['tensors']), **{name: stamp(bytes.fromhex(text)) for name, text in case['public']}}
    key, head = SecretKey(bytes.fromhex(case['content'])), bytes.fromhex(case['head'])
    found = open_tensors(section, key, read_seal(case['seal']), head, case['meta'])
    return {row['name']: raw(found[row['name']]) for row in case['tensors']}


@pytest.mark.parametrize('case', VECTORS['good'], ids=lambda case: case['of'])
def test_good_vectors_open_here_and_by_the_book(case):
    assert {name: shown(plain) for name, plain in opened(case).items()} == case['plain']
    read = {name: shown(plain) for name, plain in by_the_book(case).items()}
    assert read == {name: text for name, text in case['plain'].items() if name not in case['seal']['shared']}
    for row in case['tensors']:
        if len(row['stored']) >= 16:  # fewer bytes may come out alike
            stored = shown(bytes.fromhex(row['stored']))
            assert (stored == case['plain'][row['name']]) == (case['seal']['mode'] == 'signed')


@pytest.mark.parametrize('case', VECTORS['bad'], ids=lambda case: case['why'])
def test_bad_vectors_are_refused_here_and_by_the_book(case):
    with pytest.raises(IntegrityError):
        opened(case)
    with pytest.raises(Refused):
        by_the_book(case)


def test_the_vectors_are_what_is_written_today():
    found = good()
    assert [{'of': name, **case} for name, case in found.items()] == VECTORS['good']
    assert [{'why': why, **case} for why, case in bad(found)] == VECTORS['bad']
    texts = {json.dumps(case) for case in (*VECTORS['good'], *VECTORS['bad'])}
    assert len(texts) == len(VECTORS['good']) + len(VECTORS['bad']) > 60


def buffers(*sizes):
    """Buffers of zeros."""
    return [Buffer(f'{n:03}', 'uint8', (size,), memoryview(bytearray(size))) for n, size in enumerate(sizes)]


def in_place(items):
    return {item.name: item.data for item in items}


SIZES = (0, 1, 15, 16, 17, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 0, 9 * 2**20, 5)


@pytest.mark.parametrize('mode', ['sealed', 'signed'])
def test_sealed_in_place_and_opened_in_place(mode):
    items = buffers(*SIZES)
    seal = seal_buffers(reversed(items), in_place(items), KEY, 'x', mode, CHUNK, Around(b''))
    assert len(seal.tags) == 16 * sum(math.ceil(size / CHUNK) for size in SIZES)
    changed = [any(item.data) for item in items]
    assert changed == [mode == 'sealed' and size > 0 for size in SIZES]
    open_buffers(items, in_place(items), KEY, seal, Around(b''))
    assert not any(any(item.data) for item in items)
    assert read_seal(write_seal(seal)) == seal


@pytest.mark.parametrize('mode', ['sealed', 'signed'])
def test_no_nonce_comes_twice(mode):
    seen, lock = [], threading.Lock()

    def noted(nonce, tag=None):
        with lock:
            seen.append(nonce)
        return gcm(nonce, tag)

    items, gcm = buffers(*SIZES), chunks.GCM
    with mock.patch.object(chunks, 'GCM', noted):
        seal = seal_buffers(items, in_place(items), KEY, 'x', mode, CHUNK, Around(b''))
    count = len(seal.tags) // 16
    assert sorted(seen) == [(n + 1).to_bytes(12, 'big') for n in range(count)]
    assert len({seal.tags[at : at + 16] for at in range(0, len(seal.tags), 16)}) == count


def test_many_small_tensors_share_a_job_and_a_large_one_has_several():
    small, large = buffers(*[100] * 5000), buffers(5 * cipher.CHUNK)
    assert len(list(chunks.jobs_of(small, CHUNK))) == 1
    jobs = list(chunks.jobs_of(large, CHUNK))
    assert len(jobs) == 5 and {len(job) for job in jobs} == {cipher.CHUNK // CHUNK}
    assert [piece.number for job in jobs for piece in job] == list(range(1, 5 * cipher.CHUNK // CHUNK + 1))


def test_an_interrupt_leaves_nothing_opened():
    items = buffers(*[CHUNK] * 200)
    seal = seal_buffers(items, in_place(items), KEY, 'x', 'sealed', CHUNK, Around(b''))
    run, left = chunks.Section.run, iter(range(150))

    def interrupted(self, *args):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return run(self, *args)

    outs = {item.name: memoryview(bytearray(b'1' * len(item.data))) for item in items}
    with mock.patch.object(chunks.Section, 'run', interrupted), pytest.raises(KeyboardInterrupt):
        open_buffers(items, outs, KEY, seal, Around(b''))
    assert not any(any(out) for out in outs.values()) and all(any(item.data) for item in items)


@pytest.mark.parametrize('section, mode, chunk', [('', 'sealed', CHUNK), ('x', 'open', CHUNK), ('x', 'sealed', 1000)])
def test_a_seal_that_nobody_could_read_is_not_begun(section, mode, chunk):
    items = buffers(100)
    with pytest.raises(ValueError):
        seal_buffers(items, in_place(items), KEY, section, mode, chunk, Around(b''))
    assert not any(items[0].data)


class Mode(str):
    """Text of a kind of its own."""


@pytest.mark.parametrize(
    'value, plain',
    [
        ({'a': (1, [2.5, True, None]), 'b': {'c': 'd'}}, {'a': [1, [2.5, True, None]], 'b': {'c': 'd'}}),
        ({'a': object(), 'b': {'c': object(), 3: 'x'}, 'd': [object(), 1, b'x']}, {'b': {}, 'd': [1]}),
        ({'a': Mode('x'), Mode('b'): 1}, {'a': 'x', 'b': 1}),
        ({1: 'a', None: 'b'}, {}),
        (None, None),
        (object(), None),
    ],
)
def test_plain_values(value, plain):
    found = plain_values(value)
    assert found == plain and plain_values(found) == found == json.loads(json.dumps(found))
    assert 'Mode' not in {type(v).__name__ for v in (found or {}).values()}


def test_a_number_of_numpy_counts_as_what_a_file_of_json_has_of_it():
    np = pytest.importorskip('numpy')
    found = plain_values({'a': np.float64(0.1), 'b': np.int64(3), 'c': np.zeros(2), 'd': True})
    assert found == {'a': 0.1, 'd': True} and type(found['a']) is float and found['d'] is True
