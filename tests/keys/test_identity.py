"""Identities and recipients: a customer's pair, its texts, what is wrapped for it, and programs that give a key."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout

import pytest

from keyseg_mm import Identity, Recipient, SecretKey, locate, read_key_file, write_key_file
from keyseg_mm.atomic import is_key_file
from keyseg_mm.errors import IntegrityError, KeyFileError, SecretExposedError
from keyseg_mm.keys.identity import HYBRID, X25519, read_key, read_recipient
from keyseg_mm.keys.locator import refuse_secret
from keyseg_mm.runtime.leaks import Needles

KINDS = (X25519, HYBRID)
MATERIAL = bytes(range(64, 96))


@pytest.fixture(params=KINDS)
def identity(request):
    return Identity(MATERIAL, request.param)


# ---- texts


def test_texts_go_round(identity):
    secret, public = identity.to_text(), identity.recipient.to_text()
    assert Identity.from_text(secret) == read_key(secret) == identity
    assert Identity.from_text(secret).kind == identity.kind
    assert Recipient.from_text(public) == read_recipient(public) == identity.recipient
    assert Identity.from_text(secret).recipient.to_text() == public, 'the pair is made of the 32 bytes alone'
    assert read_key(secret.lower().replace('-', ' ')) == identity
    assert Recipient.from_text(f' {public.lower()}\n') == identity.recipient
    assert identity.id == identity.recipient.id and identity.id.startswith('kr1')


def test_kinds_are_told_apart():
    one, other = (Identity(MATERIAL, kind) for kind in KINDS)
    assert one.id != other.id and one.recipient != other.recipient
    assert len(one.recipient.to_text()) < 100 < len(other.recipient.to_text())
    assert read_key(SecretKey(MATERIAL).to_text()) == SecretKey(MATERIAL) != one
    assert Identity.generate(HYBRID).kind == HYBRID and Identity.generate() != Identity.generate()


def test_a_mistyped_text_is_told_and_never_quoted(identity):
    for text, read in ((identity.to_text(), Identity.from_text), (identity.recipient.to_text(), Recipient.from_text)):
        start = text.rindex('1-') + 2
        bad = [text[:-1], text[:-9], text[:start], text + 'A', text[:start] + '0' + text[start + 1 :]]
        for place in range(start, len(text), max(1, len(text) // 40)):
            if text[place] != '-':
                bad.append(text[:place] + ('B' if text[place] == 'A' else 'A') + text[place + 1 :])
        for mistyped in bad:
            with pytest.raises(KeyFileError, match='mistyped|cut short') as caught:
                read(mistyped)
            assert mistyped[start:] == '' or mistyped[start : start + 12] not in str(caught.value)


def test_one_text_in_the_place_of_another(identity):
    secret, public, key = identity.to_text(), identity.recipient.to_text(), SecretKey(MATERIAL).to_text()
    for read, wrong in (
        (Identity.from_text, (public, key, '', 'x')),
        (Recipient.from_text, (secret, key, '', 'x')),
        (SecretKey.from_text, (secret, public, '', 'x')),
        (read_key, (public, '', 'x')),
        (read_recipient, (secret, key, '', 'x')),
    ):
        for text in wrong:
            with pytest.raises(KeyFileError, match='this is no') as caught:
                read(text)
            assert text[-16:] == text or text[-16:] not in str(caught.value)


def test_bytes_that_are_no_pair(identity):
    public = identity.recipient.public
    for kind, bad in (
        (identity.kind, public[:-1]),
        (identity.kind, b''),
        (identity.kind, public + b'x'),
        ('rsa', public),
    ):
        with pytest.raises(KeyFileError, match='no recipient'):
            Recipient(kind, bad)
    for bad in (b'', bytes(31), bytes(33), 'x' * 32):
        with pytest.raises(KeyFileError, match='32 bytes'):
            Identity(bad, identity.kind)


def test_recipients_in_files(identity, tmp_path):
    path = tmp_path / 'a.recipient'
    path.write_text(f'# ACME Ltd\n\n{identity.recipient.to_text()}\n')
    assert read_recipient(f'file:{path}') == identity.recipient
    for content in ('', '# nobody\n', f'{identity.recipient.to_text()}\n' * 2, identity.to_text()):
        path.write_text(content)
        with pytest.raises(KeyFileError) as caught:
            read_recipient(f'file:{path}')
        assert identity.to_text()[-16:] not in str(caught.value)
    path.write_bytes(b'\xff\xfe')
    for bad in (path, tmp_path / 'none', tmp_path):
        with pytest.raises(KeyFileError, match='could not read the recipient file|no recipient file'):
            read_recipient(f'file:{bad}')


# ---- wrapping


@pytest.mark.parametrize('kind', [*KINDS, 'key'])
def test_what_is_wrapped_is_bound_to_its_context(kind):
    owner = SecretKey(MATERIAL) if kind == 'key' else Identity(MATERIAL, kind)
    payload, context = bytes(range(64)), b'a stamp'
    wrapped = owner.recipient.wrap(payload, context)
    assert owner.unwrap(wrapped, context) == payload
    assert owner.recipient.wrap(payload, context) != wrapped, 'nothing is wrapped alike twice'
    assert payload[:16] not in wrapped
    for other in (b'', b'a stamq', b'a stamp '):
        with pytest.raises(IntegrityError):
            owner.unwrap(wrapped, other)
    step = max(1, len(wrapped) // 60)
    for place in range(0, len(wrapped), step):
        altered = bytearray(wrapped)
        altered[place] ^= 1 << place % 8
        with pytest.raises(IntegrityError):
            owner.unwrap(bytes(altered), context)
    for cut in (b'', wrapped[:1], wrapped[:11], wrapped[:-1], wrapped + b'x'):
        with pytest.raises(IntegrityError):
            owner.unwrap(cut, context)


def test_nobody_else_unwraps(identity):
    wrapped = identity.recipient.wrap(b'x' * 64, b'c')
    others = [
        Identity(bytes(32), identity.kind),
        *(Identity(MATERIAL, kind) for kind in KINDS if kind != identity.kind),
    ]
    for other in (*others, SecretKey(MATERIAL)):
        with pytest.raises(IntegrityError):
            other.unwrap(wrapped, b'c')
    assert not hasattr(identity.recipient, 'unwrap')


# ---- what is secret


def test_an_identity_shows_its_public_half_only(identity):
    shown = ''.join((repr(identity), str(identity), f'{identity!r:>5}', repr([identity]), repr(identity.recipient)))
    assert identity.id in shown
    assert not Needles(identity).search('what is shown', shown.encode())
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(SecretExposedError) as caught:
            pickle.dumps({'x': identity}, protocol)
        assert identity.to_text()[-16:] not in str(caught.value)
    assert copy.copy(identity) is copy.deepcopy({'x': identity})['x'] is identity
    with pytest.raises(TypeError):
        vars(identity)


def test_an_identity_is_no_place_for_a_locator(identity):
    for text in (identity.to_text(), f'key={identity.to_text().lower()}', f'file:{identity.to_text()}'):
        for refuse in (refuse_secret, locate):
            with pytest.raises(SecretExposedError, match='burnt') as caught:
                refuse(text)
            assert identity.to_text()[-16:].lower() not in str(caught.value).lower()
    refuse_secret(identity.recipient.to_text())


def test_identity_files(identity, tmp_path):
    path = tmp_path / 'my.identity'
    write_key_file(path, identity)
    assert read_key_file(path) == locate(f'file:{path}').key == identity
    assert is_key_file(path) and identity.recipient.to_text() in path.read_text()
    sealed = tmp_path / 'sealed.identity'
    write_key_file(sealed, identity, passphrase='correct horse')
    assert identity.to_text() not in sealed.read_text()
    assert read_key_file(sealed, lambda _: 'correct horse') == identity
    with pytest.raises(KeyFileError, match='passphrase is wrong'):
        read_key_file(sealed, lambda _: 'wrong')


# ---- programs that give a key


def program(tmp_path, code: str) -> str:
    path = tmp_path / 'vault client.py'
    path.write_text(code)
    return f"cmd:{sys.executable} '{path}'"


def test_a_program_gives_a_key(identity, tmp_path, monkeypatch):
    for key in (identity, SecretKey(MATERIAL)):
        monkeypatch.setenv('TOLD', key.to_text())
        found = locate(program(tmp_path, "import os; print('  ' + os.environ['TOLD'] + '  ')"))
        assert found.key == key and not found.deliberate


FAILING = {
    'prints nothing': 'pass',
    'prints something else': "print('{text}'.replace('KEYSEG', 'KEYSAG'))",
    'prints a part': "print('{text}'[:-3])",
    'prints it twice': "print('{text}'); print('{text}')",
    'prints no text': 'import sys; sys.stdout.buffer.write(bytes(range(256)))',
    'prints, and fails': "print('{text}'); raise SystemExit(3)",
    'prints it in an exception': "raise ValueError('x')",
    'dies': "import os; print('{text}', flush=True); os.abort()",
}


@pytest.mark.parametrize('how', FAILING)
def test_a_program_that_fails_is_an_error_without_its_output(how, identity, tmp_path, capfd):
    secret = identity.to_text()
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(KeyFileError, match='cmd:') as caught:
        locate(program(tmp_path, FAILING[how].replace('{text}', secret)))
    printed = out.getvalue() + capfd.readouterr().out
    body = secret.partition('-1-')[2]
    for piece in (body[:16], body[-20:], body.replace('-', '')[:16]):
        assert piece not in str(caught.value) and piece not in printed
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None or caught.value.__suppress_context__


@pytest.mark.parametrize('command', ['cmd:', 'cmd: ', 'cmd:/no/such/program x', "cmd:'open quote", 'cmd:/'])
def test_what_is_no_program(command):
    with pytest.raises(KeyFileError):
        locate(command)


def test_no_shell_reads_a_command(tmp_path):
    with pytest.raises(KeyFileError):
        locate(f'cmd:true; touch {tmp_path}/made')
    with pytest.raises(KeyFileError):
        locate(f'cmd:echo $(touch {tmp_path}/made) `touch {tmp_path}/made` > {tmp_path}/made')
    assert list(tmp_path.iterdir()) == []


def test_a_program_that_hangs_is_not_waited_for(monkeypatch):
    def run(words, **options):
        assert options['timeout'] and 'shell' not in options
        raise subprocess.TimeoutExpired(words, options['timeout'], output=b'KEYSEG-SECRET')

    monkeypatch.setattr(subprocess, 'run', run)
    with pytest.raises(KeyFileError, match='TimeoutExpired') as caught:
        locate('cmd:vault read key')
    assert 'KEYSEG-SECRET' not in str(caught.value)


def test_a_secret_typed_into_a_command_is_burnt(identity):
    with pytest.raises(SecretExposedError) as caught:
        locate(f'cmd:echo {identity.to_text()}')
    assert identity.to_text()[-16:] not in str(caught.value)
