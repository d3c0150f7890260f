"""Tracebacks with local variables, as rich, cgitb, pytest -l and crash reporters print them, show nothing secret."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest
import torch

from keyseg_mm import Identity, SecretKey, locate, read_key_file, write_key_file
from keyseg_mm.bind import derive_cipher, derive_map, derive_order
from keyseg_mm.cli import console
from keyseg_mm.entries import ImageEntry, MapEntry, TensorEntry
from keyseg_mm.keys import derive, identity, key, keyfile
from keyseg_mm.keys.derive import KeyStream
from keyseg_mm.keys.fingerprint import Pattern
from keyseg_mm.keys.secret import Secret, unseen
from keyseg_mm.maps import CHANNEL_MAPS, TRANSFORMS, base, channels
from keyseg_mm.maps import order as orders
from keyseg_mm.maps.channels import SignedChannelPermutation
from keyseg_mm.maps.order import ValueOrder
from keyseg_mm.stamp import Stamp
from keyseg_mm.tracing.marking import _add
from keyseg_mm.wrapping import Secrets, close_envelope, open_envelope
from tests.support.tracebacks import shown

KEY, OTHER = SecretKey(bytes(range(100, 132))), SecretKey(bytes(range(1, 33)))
PASSPHRASE = 'correct horse battery'
MISTYPED = KEY.to_text()[:-1] + '!'
SALT = bytes(16)
MAP = MapEntry('out:a', 8, {'type': 'SignedChannelPermutation'}, ())
STAMP = close_envelope(Stamp(KEY.id, SALT, (MAP,)), Secrets(KEY.features(SALT)), [KEY, Identity(bytes(range(32)))])
FILES = {'mistyped': MISTYPED, 'two': f'{KEY.to_text()}\n{KEY.to_text()}', 'whole': KEY.to_text()}


def secrets():
    subkey = KEY.features(SALT).subkey('keyseg_mm/subkey/v1', ['out:a', 8, MAP.transform], SALT)
    forms = [KEY.material, KEY.features(SALT).material, subkey]
    groups = KEY.to_text().split('-')[4:-1]
    return [*(repr(form)[2:-1][:30] for form in forms), *(form.hex()[:20] for form in forms), *groups, PASSPHRASE]


SECRETS, GIVEN = secrets(), (KEY.material, KEY.to_text(), PASSPHRASE)


def given():
    """Not by name: cgitb prints what the names in a line stand for."""
    return GIVEN


def check(text):
    assert 'shown' in text or 'function' in text, 'it is a traceback'
    assert [form for form in SECRETS if form in text] == []


def test_what_is_looked_for_is_found():
    def careless(material, text, passphrase):
        subkey = KEY.features(SALT).subkey('keyseg_mm/subkey/v1', ['out:a', 8, MAP.transform], SALT)
        features = KEY.features(SALT).material
        raise ValueError(len(subkey) + len(features))

    text = shown(lambda: careless(*given()))
    assert [form for form in SECRETS if form not in text and len(form) != 20] == []
    check(shown(lambda: unseen(careless)(*given())))


def operations(tmp_path):
    """Whatever handles a secret."""
    for name, content in FILES.items():
        (tmp_path / name).write_text(content)
    write_key_file(tmp_path / 'sealed', KEY, PASSPHRASE)
    paths = [tmp_path / name for name in FILES]
    yield from (lambda path=path: read_key_file(path) for path in paths)
    yield lambda: read_key_file(tmp_path / 'sealed', lambda _: given()[2])
    yield lambda: read_key_file(tmp_path / 'sealed', lambda _: given()[2] + '?')
    yield lambda: write_key_file(tmp_path / 'other', KEY, given()[2])
    yield lambda: locate(f'file:{tmp_path / "whole"}')
    yield lambda: locate(f'cmd:cat {tmp_path / "mistyped"}')
    yield lambda: SecretKey.from_text((tmp_path / 'whole').read_text())
    yield lambda: KEY.licensee('ACME')
    yield lambda: KEY.features(SALT)
    yield lambda: KEY.wrap(bytes(32), b'')
    yield lambda: KEY.unwrap(bytes(32), b'')
    yield lambda: open_envelope(KEY, STAMP)
    yield lambda: open_envelope(Identity(bytes(range(32))), STAMP)
    yield lambda: close_envelope(STAMP, Secrets(KEY.features(SALT)), [KEY])
    yield lambda: derive_map(KEY, SALT, MAP)
    yield lambda: derive_order(KEY, SALT, TensorEntry(('a',), 8, {'type': 'TensorPermutation'}))
    yield lambda: derive_cipher(KEY, SALT, ImageEntry('FFX', 4, '')).leaks()


BROKEN = {
    'the derivation': (derive, 'HKDF'),
    'the stream': (derive, 'Cipher'),
    'the envelope': (key, 'AESGCM'),
    'the customer': (identity, '_SUITES'),
    'the passphrase': (keyfile, 'Scrypt'),
    'the checksum': (derive, 'Hash'),
    'comparing': (key.hmac, 'compare_digest'),
}


@pytest.mark.parametrize('broken', BROKEN)
def test_interrupted_wherever_a_secret_is_at_hand(broken, tmp_path, monkeypatch):
    monkeypatch.setattr(keyfile, 'SCRYPT_COST', {'n': 2**10, 'r': 8, 'p': 1})
    todo = list(operations(tmp_path))

    class Interrupt:
        def __call__(self, *_, **__):
            raise KeyboardInterrupt

        __getitem__ = __call__

    monkeypatch.setattr(*BROKEN[broken], Interrupt())
    ended = 0
    for run in todo:
        try:
            run()
        except KeyboardInterrupt:
            ended += 1
            check(shown(run))
        except Exception:
            check(shown(run))
    assert ended


def test_errors_of_keys(tmp_path, monkeypatch):
    monkeypatch.setattr(keyfile, 'SCRYPT_COST', {'n': 2**10, 'r': 8, 'p': 1})
    failed = 0
    for run in operations(tmp_path):
        try:
            run()
        except Exception:
            failed += 1
            check(shown(run))
    assert failed == 5
    for make in (
        lambda: SecretKey(bytes(range(100, 131))),
        lambda: derive_map(KEY, SALT, MapEntry('out:a', 8, {'x': 1})),
    ):
        with pytest.raises(Exception):  # noqa: B017
            make()


def test_passphrases_at_a_terminal(monkeypatch):
    answers = iter([PASSPHRASE, PASSPHRASE + '?', PASSPHRASE, KeyboardInterrupt])

    def getpass(prompt):
        typed = next(answers)
        if typed is KeyboardInterrupt:
            raise typed
        return typed

    monkeypatch.setattr(console, 'getpass', getpass)
    monkeypatch.setattr(sys, 'stdin', type('Terminal', (io.StringIO,), {'isatty': lambda self: True})())
    for _ in range(2):
        check(shown(console.new_passphrase))


def test_a_map_that_fails_at_work_shows_no_table(monkeypatch):
    tables = derive_map(KEY, SALT, MAP)
    order = str(tables.tables()['permutation'].tolist())

    class Failing(SignedChannelPermutation):
        __slots__ = ()

        @classmethod
        def _run(cls, x, dim, *tables):
            raise torch.OutOfMemoryError('no memory')

    failing = Failing(*tables._arrays)
    x = torch.ones(1, 8, 2, 2)
    text = shown(lambda: failing(x))
    assert 'no memory' in text and order not in text
    x.requires_grad_()
    assert order not in shown(lambda: failing(x))
    y = tables(x)
    monkeypatch.setattr(SignedChannelPermutation, '_run', Failing._run)
    text = shown(lambda: y.sum().backward())  # printed are tensors, in lines of their own
    assert 'no memory' in text and order[1:-1] not in ' '.join(text.split())


def test_an_order_or_a_cipher_that_fails_shows_nothing_of_it(monkeypatch):
    order = KeyStream(bytes(32)).below(np.full(1000, 1000, dtype=np.uint64))
    moved = ValueOrder(1000, lambda: order)
    monkeypatch.setattr(orders, '_put', lambda *_: 1 / 0)
    cipher = derive_cipher(KEY, SALT, ImageEntry('FFX', 4, ''))
    secrets = [repr(order)[6:40], *(repr(table)[6:40] for table in cipher.leaks().values())]
    monkeypatch.setattr(np, 'take', lambda *_, **__: 1 / 0)
    monkeypatch.setattr(np, 'where', lambda *_: 1 / 0)
    for run in (lambda: moved.carry(torch.ones(1000)), lambda: cipher.encrypt(np.ones((8, 8, 3), np.uint8))):
        text = shown(run)
        assert 'ZeroDivisionError' in text and [form for form in secrets if form in text] == []


@pytest.mark.parametrize('kind', CHANNEL_MAPS)
def test_a_map_that_fails_at_a_weight_shows_no_table(kind, monkeypatch):
    made = TRANSFORMS[kind].derive(KeyStream(bytes(32)), 64)
    forms = [
        form for table in made.tables().values() for form in (repr(table)[:60], repr(torch.from_numpy(table))[:60])
    ]
    forms += [repr(table)[:60] for table in made.placed(torch.device('cpu'), torch.float32)]
    weight = torch.ones(3, 64, 2)
    run = made.by_rows(weight)

    def fail(*_):
        raise torch.OutOfMemoryError('no memory')

    for module in (base, channels):
        for name in ('select_channels', 'blocks', 'table_tensor'):
            monkeypatch.setattr(module, name, fail, raising=False)
    monkeypatch.setattr(torch, 'bmm', fail)
    ways = [lambda: run(weight), lambda: made.carry(weight), lambda: made.inverse().by_rows(weight)(weight)]
    for text in map(shown, ways):
        assert 'no memory' in text and [form for form in forms if form in text] == []


def test_a_fingerprint_that_fails_shows_no_pattern():
    weight = torch.ones(64, 64, dtype=torch.int64)  # takes no fractions
    pattern = Pattern(KEY, 'ACME', bytes(16), 'a.weight')
    values = Pattern(KEY, 'ACME', bytes(16), 'a.weight').read(4096)
    text = shown(lambda: _add(pattern, 0.5, weight))
    forms = [repr(values)[6:40], repr(values.view('int8') - 15)[6:40]]
    assert 'dtype' in text and [form for form in forms if form in text] == []


def test_a_secret_text_shows_its_name_alone():
    from keyseg_mm.keys.secret import Text

    text = Text(PASSPHRASE, 'of a file')
    assert isinstance(text, Secret) and text.reveal() == PASSPHRASE
    assert PASSPHRASE not in repr([text]) + str(text) + f'{text}'


def test_an_unseen_function_keeps_its_error():
    @unseen
    def fails():
        try:
            raise KeyError('inner')
        except KeyError:
            raise ValueError('outer') from None

    with pytest.raises(ValueError, match='outer') as caught:
        fails()
    assert caught.value.__context__ is None and fails.__name__ == 'fails'
