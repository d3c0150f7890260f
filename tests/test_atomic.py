"""Files are whole or not there, for their owner only until they are, and nothing precious is replaced."""

from __future__ import annotations

import errno
import io
import os
import signal
import stat
import threading

import pytest
import torch

from keyseg_mm import Identity, SecretKey, atomic, write_key_file
from keyseg_mm.atomic import is_key_file, make_folder, refuse_existing, write_new
from keyseg_mm.checkpoint.files import write_checkpoint
from keyseg_mm.errors import KeysegError
from keyseg_mm.keys import keyfile


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def rewrite(path, overwrite):
    write_new(path, lambda file: file.write(b'x'), overwrite=overwrite)


def mode_of(path):
    return stat.S_IMODE(os.stat(path).st_mode)


@pytest.fixture(params=['unnamed', 'hidden', 'refused'])
def way(request, monkeypatch):
    """As Linux writes files, as other systems do, and as Linux does where a file system has no files without names."""
    opened = os.open

    def refuse(path, flags, *args, **kwargs):
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return opened(path, flags, *args, **kwargs)

    if request.param == 'hidden':
        monkeypatch.delattr(os, 'O_TMPFILE')
    elif request.param == 'refused':
        monkeypatch.setattr(os, 'open', refuse)
    elif not hasattr(os, 'O_TMPFILE'):
        pytest.skip('files without names are of Linux')
    old = os.umask(0o022)
    yield request.param
    os.umask(old)


@pytest.mark.parametrize('overwrite', [False, True])
def test_a_file_is_private_until_it_is_whole(way, overwrite, tmp_path):
    path, seen = tmp_path / 'a.pth', {}
    if overwrite:
        path.write_bytes(b'old')

    def write(file):
        file.write(b'half')
        file.flush()
        seen['files'] = {p.name: mode_of(p) for p in tmp_path.iterdir() if p != path}
        seen['mode'] = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        assert not overwrite or path.read_bytes() == b'old'
        file.write(b', whole')

    write_new(path, write, overwrite=overwrite)
    assert seen['mode'] == 0o600
    assert len(seen['files']) == (way != 'unnamed') and set(seen['files'].values()) <= {0o600}
    assert path.read_bytes() == b'half, whole' and mode_of(path) == 0o644
    assert names_in(tmp_path) == ['a.pth']


@pytest.mark.parametrize('overwrite', [False, True])
@pytest.mark.parametrize('error', [SystemExit, KeyboardInterrupt, ValueError])
def test_what_ends_early_leaves_nothing(way, overwrite, error, tmp_path):
    path = tmp_path / 'a.pth'
    if overwrite:
        path.write_bytes(b'old')

    def write(file):
        file.write(b'half')
        raise error

    with pytest.raises(error):
        write_new(path, write, overwrite=overwrite)
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b'old'] * overwrite


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_a_signal_waits_until_a_writer_in_another_language_is_done(way, number, suffix, tmp_path, monkeypatch):
    """torch's writer aborts the process when an error comes out of the file that it calls."""
    ran = []

    def answer(number, frame):
        ran.append(len(seen))
        raise SystemExit(128 + number)

    class Disturbed(io.BufferedRandom):
        def write(self, data):
            seen.append(len(data))
            signal.raise_signal(number)
            return super().write(data)

    seen, kept = [], signal.signal(number, answer)
    monkeypatch.setattr('builtins.open', lambda handle, mode: Disturbed(io.FileIO(handle, 'w+')))
    try:
        with pytest.raises(SystemExit):
            write_checkpoint(tmp_path / f'a{suffix}', {'w': torch.ones(100)}, {})
        assert signal.getsignal(number) is answer
    finally:
        signal.signal(number, kept)
    assert len(seen) > 1 and ran == [len(seen)]
    assert names_in(tmp_path) == []


def test_the_disk_works_while_the_file_is_being_made(way, tmp_path, monkeypatch):
    path, synced = tmp_path / 'a.pth', threading.Event()
    monkeypatch.setattr(atomic, '_sync', lambda handle: synced.set())

    def write(file):
        assert synced.wait(60)
        file.write(b'whole')

    write_new(path, write)
    assert path.read_bytes() == b'whole'
    assert not [t for t in threading.enumerate() if t.name == 'keyseg_mm sync']


def test_what_the_disk_did_not_take_while_the_file_was_being_made_is_an_error(way, tmp_path, monkeypatch):
    """The system tells of it once: the sync at the end finds nothing wrong any more."""
    path, failed = tmp_path / 'a.pth', threading.Event()

    def sync(handle):
        failed.set()
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(atomic, '_sync', sync)
    with pytest.raises(KeysegError, match='could not write .*a.pth: Input/output error'):
        write_new(path, lambda file: failed.wait(60))
    assert failed.is_set() and names_in(tmp_path) == []


def test_a_file_that_appears_meanwhile_is_left(way, tmp_path):
    path = tmp_path / 'a.pth'
    with pytest.raises(KeysegError, match='exists already'):
        write_new(path, lambda file: path.write_bytes(b'theirs'))
    assert path.read_bytes() == b'theirs' and names_in(tmp_path) == ['a.pth']


def test_a_link_that_appears_meanwhile_is_not_followed(way, tmp_path):
    path, target = tmp_path / 'a.pth', tmp_path / 'target'
    target.write_bytes(b'theirs')
    for overwrite in (False, True):
        path.unlink(missing_ok=True)
        if overwrite:
            write_new(path, lambda file: path.symlink_to(target), overwrite=True)
            assert not path.is_symlink()
        else:
            with pytest.raises(KeysegError, match='exists already'):
                write_new(path, lambda file: path.symlink_to(target))
        assert target.read_bytes() == b'theirs'


def precious(tmp_path, monkeypatch):
    """What is never replaced, by what it is."""
    monkeypatch.setattr(keyfile, 'SCRYPT_COST', {'n': 2**10, 'r': 8, 'p': 1})
    key = SecretKey(bytes(range(32)))
    found = {name: tmp_path / name for name in ('a link', 'a pipe', 'a device', 'plain', 'sealed', 'identity', 'coded')}
    (tmp_path / 'target').write_bytes(b'theirs')
    found['a link'].symlink_to(tmp_path / 'target')
    os.mkfifo(found['a pipe'])
    found['a device'] = type(tmp_path)('/dev/null')
    write_key_file(found['plain'], key)
    write_key_file(found['sealed'], key, passphrase='p')
    write_key_file(found['identity'], Identity(bytes(range(32))))
    found['coded'].write_bytes(key.to_text().lower().encode('utf-16'))
    return found


def test_what_is_precious_is_never_replaced(tmp_path, monkeypatch):
    things = precious(tmp_path, monkeypatch)
    before = {name: path.read_bytes() for name, path in things.items() if name not in ('a pipe', 'a device')}
    for name, path in things.items():
        for refuse in (
            refuse_existing,
            lambda p, overwrite: write_new(p, lambda f: f.write(b'x'), overwrite=overwrite),
        ):
            with pytest.raises(KeysegError, match=name if name.startswith('a ') else 'holds a key'):
                refuse(path, overwrite=True)
            with pytest.raises(KeysegError, match='exists already'):
                refuse(path, overwrite=False)
    assert {name: things[name].read_bytes() for name in before} == before
    assert stat.S_ISFIFO(os.lstat(things['a pipe']).st_mode) and stat.S_ISCHR(os.lstat('/dev/null').st_mode)
    ordinary = tmp_path / 'ordinary'
    ordinary.write_bytes(b'# a note on KEYSEG-SECRET-KEY-1-\n' + bytes(range(256)) * 1000)
    assert not is_key_file(ordinary)
    refuse_existing(ordinary, overwrite=True)
    write_new(ordinary, lambda file: file.write(b'new'), overwrite=True)
    assert ordinary.read_bytes() == b'new'


@pytest.mark.parametrize('name', ['a\0b', '\ud800', 'no such folder/a', 'target/a', 'x' * 300, '.', 'folder'])
def test_names_that_no_file_can_have(name, tmp_path):
    (tmp_path / 'target').write_bytes(b'')
    (tmp_path / 'folder').mkdir()
    for refuse in (refuse_existing, rewrite):
        for overwrite in (False, True):
            with pytest.raises(KeysegError, match='could not write|exists already'):
                refuse(tmp_path / name, overwrite)
    assert names_in(tmp_path) == ['folder', 'target']


def test_folders_are_made_for_their_owner(tmp_path):
    old = os.umask(0o022)
    make_folder(tmp_path / 'a' / 'b')
    make_folder(tmp_path / 'a' / 'b')
    os.umask(old)
    assert mode_of(tmp_path / 'a') == mode_of(tmp_path / 'a' / 'b') == 0o700
    (tmp_path / 'file').touch()
    for bad in ('file', 'file/x', 'a\0b'):
        with pytest.raises(KeysegError, match='could not make the folder'):
            make_folder(tmp_path / bad)
