"""Seals and lines of an envelope: written and read alike, and whatever else is put in their place is refused."""

from __future__ import annotations

import base64
import json
from dataclasses import fields

import pytest

from keyseg_mm.envelope import Seal, Wrapped, read_seal, read_wrapped, write_seal, write_wrapped

WRAPPED = Wrapped('ks16j7kv7aj7ggs6aoj', 'key', bytes(range(72)))
SEAL = Seal('state_dict', 'sealed', 2**22, {'b': 'a', 'c': 'a'}, bytes(range(48)), b'm' * 32, b't' * 32)
KINDS = {
    'wrapped': (WRAPPED, write_wrapped, read_wrapped),
    'seal': (SEAL, write_seal, read_seal),
}


def b64(content):
    return base64.b64encode(content).decode()


@pytest.mark.parametrize(
    'record, write, read',
    [
        *KINDS.values(),
        (Wrapped('a', 'mlkem768-x25519', bytes(2048)), write_wrapped, read_wrapped),
        (Seal('optimizer', 'signed', 2**16, {}, b'', b'', bytes(32)), write_seal, read_seal),
        (Seal('a', 'sealed', 2**30, {}, bytes(2**21), b'', bytes(32)), write_seal, read_seal),
    ],
)
def test_written_and_read_alike(record, write, read):
    value = json.loads(json.dumps(write(record)))
    assert read(value) == record and write(read(value)) == value


BAD = {
    'wrapped': {
        'id': ['', 'A', 'a' * 65, 'a\n', 'a b', 3, None, ['a']],
        'kind': ['', 'password', 'KEY', 3, None, ['key']],
        'data': ['', '=', 'AA', 'AA=', 'AB==', 'A A=', 'AAAA\n', '-_-_', 'é', b64(bytes(2049)), 3, None, b'AAAA', []],
    },
    'seal': {
        'section': ['', 'a' * 129, 'a b', 'a\n', '\x1b[31m', 3, None, []],
        'mode': ['', 'open', 'SEALED', 3, None, ['sealed']],
        'chunk': [0, -1, 2**15, 2**31, 2**16 + 1, 3 * 2**16, 65536.0, True, '65536', None],
        'shared': [
            [],
            None,
            'ab',
            {'b': ''},
            {'': 'a'},
            {'b': 3},
            {'b': None},
            {'a': 'a'},
            {'a': 'b'},
            {'b': 'a', 'c': 'b'},
            {'b' * 513: 'a'},
            {'b\x1b': 'a'},
            {'\ud800': 'a'},
            {f'b{n}': 'a' for n in range(65_537)},
        ],
        'tags': ['AA==', b64(bytes(15)), b64(bytes(17)), b64(bytes(2**21 + 16)), 'A' * 2**23, 3, None, 'AB=='],
        'meta': [b64(bytes(31)), b64(bytes(33)), 'x', 3, None],
        'tag': ['', b64(bytes(31)), b64(bytes(33)), 'x', 3, None],
    },
}


@pytest.mark.parametrize(
    'kind, name, value',
    [(kind, name, value) for kind, names in BAD.items() for name, values in names.items() for value in values],
    ids=lambda value: repr(value)[:20],
)
def test_bad_values_are_refused(kind, name, value):
    record, write, read = KINDS[kind]
    with pytest.raises(ValueError):
        read({**write(record), name: value})


def test_there_is_a_bad_value_for_each_field():
    assert all(BAD[kind].keys() == {f.name for f in fields(record)} for kind, (record, *_) in KINDS.items())


@pytest.mark.parametrize('kind', KINDS)
def test_missing_and_unknown_fields_are_refused(kind):
    record, write, read = KINDS[kind]
    for name in write(record):
        less = write(record)
        del less[name]
        with pytest.raises(ValueError):
            read(less)
    for other in ({**write(record), 'more': 1}, {}, [], None, 'x', 3, list(write(record).items()), [write(record)]):
        with pytest.raises(ValueError):
            read(other)


@pytest.mark.parametrize('kind', KINDS)
def test_none_is_made_that_could_not_be_read(kind):
    record = KINDS[kind][0]
    for name, values in BAD[kind].items():
        made = {f.name: getattr(record, f.name) for f in fields(record)}
        with pytest.raises(ValueError):
            type(record)(**{**made, name: values[0]})
