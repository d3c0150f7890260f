"""Keys, their text form, key files and locators."""

from __future__ import annotations

import base64
import copy
import pickle
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyseg_mm import SecretKey, find_leaks, locate, read_key_file, write_key_file
from keyseg_mm.errors import KeyFileError, KeysegError, SecretExposedError
from keyseg_mm.keys import keyfile as keyfile_module
from keyseg_mm.keys.key import TEXT_PREFIX, wrong_key


@pytest.fixture
def cheap_scrypt(monkeypatch):
    """Sealing at its real cost takes 0.3 s each time; the format is the same at any cost."""
    monkeypatch.setattr(keyfile_module, 'SCRYPT_COST', {'n': 2**10, 'r': 8, 'p': 1})


@given(st.binary(min_size=32, max_size=32))
def test_text_form_round_trip(material):
    key = SecretKey(material)
    assert key.to_text().startswith(TEXT_PREFIX)
    assert SecretKey.from_text(key.to_text()) == key
    assert SecretKey.from_text(' ' + key.to_text().lower().replace('-', ' ') + '\n') == key


@given(st.integers(0, 63), st.sampled_from('ABCDEFGHIJKLMNOPQRSTUVWXYZ234567'))
def test_checksum_catches_every_single_typing_error(place, letter):
    text = SecretKey(bytes(range(32))).to_text()
    body = text[len(TEXT_PREFIX) :].replace('-', '')
    typed = TEXT_PREFIX + body[:place] + letter + body[place + 1 :]
    if letter == body[place]:
        assert SecretKey.from_text(typed).id == SecretKey(bytes(range(32))).id
    else:
        with pytest.raises(KeyFileError, match='mistyped'):
            SecretKey.from_text(typed)


def test_errors_never_quote_the_text(key):
    for text in (key.to_text()[:-1] + '!', key.to_text()[:40], 'hello ' + key.to_text()[25:]):
        with pytest.raises(KeyFileError) as caught:
            SecretKey.from_text(text)
        assert caught.value.__cause__ is None
        assert not any(part in str(caught.value) for part in text.split('-')[4:] if len(part) > 4)


def test_key_never_shows_itself(key):
    assert key.id in repr(key)
    assert repr(key) == str(key) == f'{key}' == f'<SecretKey {key.id}>'
    assert not hasattr(key, '__dict__')
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(SecretExposedError):
            pickle.dumps(key, protocol)
    assert copy.deepcopy({'k': key})['k'] is key


def test_generated_keys_differ():
    keys = {SecretKey.generate().id for _ in range(20)}
    assert len(keys) == 20


def test_licensee_keys_are_fixed_and_apart(key):
    ids = {key.id, key.licensee('a').id, key.licensee('b').id, wrong_key('1').licensee('a').id}
    assert len(ids) == 4
    assert key.licensee('a') == SecretKey(bytes(range(32))).licensee('a')
    with pytest.raises(KeyFileError):
        key.licensee('  ')


def test_key_file_is_private_and_never_overwritten(tmp_path, key):
    path = tmp_path / 'a.key'
    write_key_file(path, key)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_key_file(path) == key
    before = path.read_bytes()
    with pytest.raises(KeysegError, match='exists already'):
        write_key_file(path, SecretKey.generate())
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ['a.key']


def test_sealed_key_file(tmp_path, key, cheap_scrypt, monkeypatch):
    path = tmp_path / 'sealed.key'
    write_key_file(path, key, passphrase='correct horse')
    assert not find_leaks(path, key)
    assert read_key_file(path, lambda _: 'correct horse') == key
    with pytest.raises(KeyFileError, match='passphrase is wrong') as caught:
        read_key_file(path, lambda _: 'wrong horse')
    assert 'wrong horse' not in str(caught.value)
    monkeypatch.delenv('KEYSEG_PASSPHRASE', raising=False)
    with pytest.raises(KeyFileError, match='KEYSEG_PASSPHRASE'):
        read_key_file(path)
    monkeypatch.setenv('KEYSEG_PASSPHRASE', 'correct horse')
    assert locate(f'file:{path}').key == key
    with pytest.raises(KeyFileError, match='empty passphrase'):
        write_key_file(tmp_path / 'b.key', key, passphrase='')


@pytest.mark.parametrize(
    'edit', [('"n": 1024', '"n": 1073741824'), ('"version": 1', '"version": 2'), ('"salt": "', '"salt": "!')]
)
def test_damaged_sealed_files_are_refused_before_work_is_done(tmp_path, key, cheap_scrypt, edit):
    path = tmp_path / 'sealed.key'
    write_key_file(path, key, passphrase='p')
    assert edit[0] in path.read_text()
    path.write_text(path.read_text().replace(*edit))
    with pytest.raises(KeyFileError, match='damaged|does not read'):
        read_key_file(path, lambda _: 'p')


@pytest.mark.parametrize(
    'content', [b'', b'# only a comment\n', b'one\ntwo\n', b'\xff\xfe\x00', b'password123\n', b'a' * 100_000]
)
def test_malformed_key_files(tmp_path, content):
    path = tmp_path / 'bad.key'
    path.write_bytes(content)
    with pytest.raises(KeyFileError) as caught:
        read_key_file(path)
    assert 'bad.key' in str(caught.value)
    assert 'password123' not in str(caught.value)


def test_locators(key, key_file, monkeypatch):
    assert locate(f'file:{key_file}').key == key
    monkeypatch.setenv('MY_KEY', key.to_text())
    assert locate('env:MY_KEY').key == key
    assert (locate('none').key, locate('none').deliberate) == (None, True)
    assert locate('random:7').deliberate
    assert locate('random:7').key == locate('random:7').key != locate('random:8').key
    for missing in (None, '', 'env:NO_SUCH_VARIABLE', 'file:/no/such/file', 'file:', '-', 'keyring:nobody', 'hunter2'):
        with pytest.raises(KeyFileError) as caught:
            locate(missing)
        assert 'hunter2' not in str(caught.value)


def test_stdin_locator(key, monkeypatch):
    import io

    monkeypatch.setattr('sys.stdin', io.StringIO(key.to_text() + '\n'))
    assert locate('-', stdin=True).key == key


def test_a_secret_in_place_of_a_locator_is_refused_and_not_quoted(key):
    text = key.to_text()
    forms = [text, f'file:{text}', text.lower(), f'env:{text}', key.material.hex(), key.material.hex().upper()]
    forms.append(base64.b64encode(key.material).decode().rstrip('='))
    for form in forms:
        with pytest.raises(SecretExposedError, match='burnt') as caught:
            locate(form)
        assert form not in str(caught.value)
        assert text[30:40] not in str(caught.value)
