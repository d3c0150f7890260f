"""Keys are read wherever their text lies, in whatever coding; what cannot be read says why, and quotes nothing."""

from __future__ import annotations

import io
import os
import shlex
import subprocess
import sys
import unicodedata
from base64 import b32encode, b64encode

import pytest

from keyseg_mm import Identity, SecretKey, locate, read_key_file, write_key_file
from keyseg_mm.cli.trace import _read_names
from keyseg_mm.errors import KeyFileError, SecretExposedError
from keyseg_mm.keys import keyfile
from keyseg_mm.keys.content import from_environment, handed_on
from keyseg_mm.keys.identity import read_recipient
from keyseg_mm.keys.locator import refuse_secret, refuse_typed, refuse_written

CODINGS = {
    'as it is': lambda text: text.encode(),
    'of Windows': lambda text: text.replace('\n', '\r\n').encode(),
    'marked': lambda text: text.encode('utf-8-sig'),
    'UTF-16': lambda text: text.encode('utf-16'),
    'UTF-16, big endian': lambda text: b'\xfe\xff' + text.encode('utf-16-be'),
    'without its last newline': lambda text: text.rstrip('\n').encode(),
    'its line alone': lambda text: text.splitlines()[-1].encode(),
    'quoted': lambda text: f'"{text.splitlines()[-1]}"'.encode(),
}


@pytest.fixture(params=['key', 'identity', 'sealed'])
def secret(request, key, monkeypatch):
    """What a key file holds, and a way to read it."""
    monkeypatch.setattr(keyfile, 'SCRYPT_COST', {'n': 2**10, 'r': 8, 'p': 1})
    monkeypatch.setenv(keyfile.PASSPHRASE_VARIABLE, 'correct horse')
    return Identity(bytes(range(32))) if request.param == 'identity' else key, request.param == 'sealed'


@pytest.mark.parametrize('coding', CODINGS)
def test_a_key_file_in_any_coding_and_from_any_place(coding, secret, tmp_path, monkeypatch):
    expected, is_sealed = secret
    path = tmp_path / 'a b, c.key'
    write_key_file(path, expected, 'correct horse' if is_sealed else None, comment='für ACME')
    if is_sealed and coding == 'quoted':
        pytest.skip('JSON has quotes of its own')
    path.write_bytes(CODINGS[coding](path.read_text('utf-8')))
    assert read_key_file(path) == expected
    assert locate(f'file:{path}').key == expected
    assert locate(f'cmd:cat {shlex.quote(str(path))}').key == expected
    if not coding.startswith('UTF-16'):  # shells drop its zeros
        text = path.read_bytes().decode('utf-8-sig')
        monkeypatch.setenv('MY_KEY', text)  # KEYSEG_KEY="$(cat my.key)"
        assert locate('env:MY_KEY').key == expected
        monkeypatch.setattr(sys, 'stdin', io.StringIO(text))
        assert locate('-', stdin=True).key == expected


def test_a_recipient_in_any_coding(tmp_path):
    recipient = Identity(bytes(range(32))).recipient
    for coding in CODINGS.values():
        (tmp_path / 'r').write_bytes(coding(f'# für ACME\n{recipient.to_text()}\n'))
        assert read_recipient(f'file:{tmp_path / "r"}') == recipient


@pytest.mark.parametrize('name', ['a\0b', '\ud800', '~nobody-of-that-name/x', 'no such', '.', 'x' * 300])
def test_names_that_lead_to_nothing(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for read in (read_key_file, lambda n: locate(f'file:{n}'), lambda n: read_recipient(f'file:{n}')):
        with pytest.raises(KeyFileError, match='could not read'):
            read(name)
    for scheme in ('env', 'keyring', 'cmd'):
        with pytest.raises(KeyFileError):
            locate(f'{scheme}:{name}')


def test_a_key_is_taken_out_of_the_environment(key, monkeypatch):
    def child_has(name):
        code = f'import os, sys; sys.exit({name!r} in os.environ)'
        return bool(subprocess.run([sys.executable, '-S', '-c', code]).returncode)

    monkeypatch.setenv('MY_KEY', key.to_text())
    assert child_has('MY_KEY')
    for _ in range(2):  # asked again, it is still known
        assert locate('env:MY_KEY').key == key
        assert 'MY_KEY' not in os.environ and not child_has('MY_KEY')
    with handed_on():
        assert child_has('MY_KEY')
    assert not child_has('MY_KEY')
    monkeypatch.setenv('MY_KEY', SecretKey(bytes(32)).to_text())
    assert locate('env:MY_KEY').key == SecretKey(bytes(32))
    assert key.to_text() not in repr(from_environment('MY_KEY'))
    with pytest.raises(KeyFileError, match='spawned workers'):
        locate('env:NO_SUCH')


@pytest.mark.parametrize(
    'cost', [(2**20, 16, 4), (2**22, 1, 2), (2**14, 2**9, 1), (2.0, 8, 1), (True, 8, 1), (0, 8, 1)]
)
def test_what_a_sealed_file_may_ask_for(cost, key, tmp_path, monkeypatch):
    monkeypatch.setattr(keyfile, 'SCRYPT_COST', {'n': 2**10, 'r': 8, 'p': 1})
    path = tmp_path / 'a.key'
    write_key_file(path, key, 'p')
    monkeypatch.setattr(keyfile, 'Scrypt', None)  # no work is begun
    asked = dict(zip('nrp', cost))
    path.write_text(path.read_text().replace('"n": 1024, "r": 8, "p": 1', str(asked)[1:-1].replace("'", '"').lower()))
    with pytest.raises(KeyFileError, match='that this release does not read'):
        read_key_file(path, lambda _: 'p')


@pytest.mark.parametrize('line', ['{' * 20_000, '{"n": ' + '9' * 5000 + '}', '{"n": 1e999}', '{}', '{"format": []}'])
def test_damaged_sealed_files(line, tmp_path):
    (tmp_path / 'a.key').write_text(line)
    with pytest.raises(KeyFileError, match='damaged'):
        read_key_file(tmp_path / 'a.key', lambda _: 'p')


def test_a_passphrase_in_any_form_of_unicode(key, tmp_path, monkeypatch):
    monkeypatch.setattr(keyfile, 'SCRYPT_COST', {'n': 2**10, 'r': 8, 'p': 1})
    composed, apart = (unicodedata.normalize(form, 'Zürich') for form in ('NFC', 'NFD'))
    assert composed != apart
    write_key_file(tmp_path / 'a.key', key, composed)
    assert read_key_file(tmp_path / 'a.key', lambda _: apart) == key
    write_key_file(tmp_path / 'b.key', key, 'caf\udce9')  # as the environment has what is no UTF-8
    assert read_key_file(tmp_path / 'b.key', lambda _: 'caf\udce9') == key


def test_one_licensee_has_one_key_however_their_name_is_typed(key, tmp_path):
    names = ['Café Zürich', unicodedata.normalize('NFD', 'Café Zürich'), ' Café  Zürich\t', 'Café\u00a0Zürich']
    assert len(set(names)) == 4 and len({key.licensee(name) for name in names}) == 1
    assert key.licensee('cafe zürich') != key.licensee(names[0])
    for content in ('\n'.join(['# customers', *names]).encode(), '\n'.join(names).encode('utf-16')):
        (tmp_path / 'customers.txt').write_bytes(content)
        assert _read_names(tmp_path / 'customers.txt') == names[:1]
    for name in ('', ' \n', '#1 Ltd', ' # x', 'a\0b', 'a\x1b[2J', '\ud800'):
        with pytest.raises(KeyFileError, match="a licensee's name"):
            key.licensee(name)


def typed(key):
    """Forms in which people have a key, besides its text form."""
    raw = key.material
    hexed, whole, body = raw.hex(), b64encode(raw).decode().rstrip('='), key.to_text()[20:]
    yield from (key.to_text(), key.to_text().lower(), key.to_text().replace('-', ' '), key.to_text().replace('-', '_'))
    yield from (body, body.lower(), body.replace('-', ''), b32encode(raw).decode()[:48] + 'ABCD')
    yield from (hexed, hexed.upper(), f'0x{hexed}', raw.hex(' '), raw.hex(':'), f'hex:{hexed}')
    yield from (whole, f'{whole}=', f'base64:{whole}=', f'key:{whole}', f'"{whole}="', whole.replace('+', '-'))


def test_a_key_is_refused_in_every_form_and_place(key):
    for form in typed(key):
        named = (f'model.protection.key={form}', f"model.protection={{'key': '{form}'}}", f'pipeline.3.key="{form}"')
        for refuse, given in (
            (locate, form),
            *((refuse_typed, [argument]) for argument in named),
            (refuse_written, {'model': [{'protection': {'key': form}}]}),
        ):
            with pytest.raises(SecretExposedError, match='burnt') as caught:
                refuse(given)
            assert form[-12:] not in str(caught.value)


def test_what_is_no_secret_is_let_through():
    path = '/a/folder/of/exactly/so/many/characters/abc'
    assert len(path) == 43
    with pytest.raises(SecretExposedError):
        refuse_secret(path)
    refuse_typed([path, f'load_from={path}', f'model.protection.key=file:{path}', 'work_dir=work_dirs/keyed_fcn'])
    refuse_written({'load_from': path, 'key': f'file:{path}', 'keys': [path], 'protection': {'key': 'none'}})
