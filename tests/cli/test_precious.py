"""No command replaces a key, a device, a pipe or a link; a forged stamp has a status of its own."""

from __future__ import annotations

import os
import stat
from dataclasses import replace

import pytest
import torch

from keyseg_mm import write_key_file
from keyseg_mm.bind import stamp_tensor
from keyseg_mm.checkpoint.files import read_checkpoint
from keyseg_mm.cli.status import FORGED, NOT_TRACED
from keyseg_mm.entries import MapEntry
from keyseg_mm.seal.sections import sealed_stamp
from tests.support.cli import keyseg
from tests.support.files import KEY, OTHER

COMMANDS = {
    'lock': ['lock', 'plain.pth', '--key', 'file:my.key', '--overwrite', '--out'],
    'unlock': ['unlock', 'locked.pth', '--key', 'file:my.key', '--overwrite', '--out'],
    'rekey': ['rekey', 'locked.pth', '--key', 'file:my.key', '--new-key', 'file:other.key', '--overwrite', '--out'],
    'rekey --reseal': ['rekey', 'locked.pth', '--key', 'file:my.key', '--new-key', 'file:other.key', '--reseal',
                       '--overwrite', '--out'],
    'rekey --licensee': ['rekey', 'locked.pth', '--master', 'file:my.key', '--licensee', 'ACME', '--overwrite',
                         '--out'],
    'keygen': ['keygen', '--out'],
    'encrypt_images': ['tool', 'encrypt_images', 'picture.png', '--checkpoint', 'locked.pth', '--key', 'file:my.key'],
}  # fmt: skip


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, key in (('my.key', KEY), ('other.key', OTHER), ('precious.png', KEY)):
        write_key_file(name, key)
    torch.save({'state_dict': {'layer.weight': torch.arange(512.0).reshape(16, 32)}}, 'plain.pth')
    assert keyseg(*COMMANDS['lock'], 'locked.pth') == 0
    (tmp_path / 'picture.png').write_bytes(b'')
    os.mkfifo('pipe.png')
    (tmp_path / 'device.png').symlink_to('/dev/null')
    (tmp_path / 'link.png').symlink_to(tmp_path / 'plain.pth')
    return tmp_path


def contents(folder):
    paths = [path for path in folder.iterdir() if path.name != 'pipe.png']
    return {path.name: (path.lstat().st_mode, path.is_symlink() or path.read_bytes()) for path in paths}


@pytest.mark.parametrize('command', COMMANDS)
@pytest.mark.parametrize('name', ['my.key', 'precious.png', 'pipe.png', 'device.png', 'link.png', '/dev/null', '.'])
def test_what_is_precious_stays(command, name, files, capsys):
    before = {
        p.name: (p.lstat().st_mode, p.is_symlink() or p.read_bytes()) for p in files.iterdir() if 'pipe' not in p.name
    }
    assert keyseg(*COMMANDS[command], name) == 1
    said = capsys.readouterr().err
    assert any(why in said for why in ('never replaced', 'exists already', 'written as PNG')), said
    after = {
        p.name: (p.lstat().st_mode, p.is_symlink() or p.read_bytes()) for p in files.iterdir() if 'pipe' not in p.name
    }
    assert after == before and stat.S_ISFIFO(os.lstat('pipe.png').st_mode)


def test_a_forged_stamp_has_a_status_of_its_own(files, capsys):
    assert keyseg(*COMMANDS['rekey --licensee'], 'acme.pth') == 0
    for name, content in (('customers.txt', 'ACME\nBolt\n'), ('others.txt', 'Bolt\n')):
        (files / name).write_text(content)
    trace = ('--master', 'file:my.key', '--licensees', 'customers.txt')
    assert keyseg('trace', 'acme.pth', *trace) == 0
    assert keyseg('trace', 'acme.pth', *trace[:3], 'others.txt') == NOT_TRACED
    section = read_checkpoint('acme.pth')['state_dict']
    stamp = sealed_stamp(section)
    entry = MapEntry('in:layer', 32, {'type': 'ChannelPermutation'}, ('layer.weight',))
    bare = replace(stamp, seal=None, recipients=(), commitment='', entries=(entry,))
    for forged in (replace(stamp, salt=bytes(16)), bare):
        torch.save({'state_dict': {**section, stamp.name: stamp_tensor(forged)}}, 'forged.pth')
        assert keyseg('trace', 'forged.pth', *trace) == FORGED
        assert 'ALTERED' in capsys.readouterr().out
    plain = read_checkpoint('plain.pth')['state_dict']
    torch.save({'state_dict': {**plain, forged.name: stamp_tensor(forged)}}, 'framed.pth')  # to put the blame on ACME
    assert keyseg('trace', 'framed.pth', *trace, '--original', 'plain.pth') == FORGED
