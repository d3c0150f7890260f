"""The command line, as a user types it."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmseg.registry import MODELS

from keyseg_mm import read_key_file
from keyseg_mm.checkpoint.files import stamps_in
from keyseg_mm.cli import COMMANDS, GROUPS, build_parser
from keyseg_mm.cli.host import host_tool
from keyseg_mm.cli.status import FOUND, STATUS, UNREAD
from keyseg_mm.wrapping import open_envelope
from tests.support.cli import keyseg
from tests.support.configs import keyed_cfg, tiny_model_cfg

ROOT = Path(__file__).parents[2]


@pytest.fixture
def model_files(tmp_path, key_file):
    """A config, and checkpoints of its protected and its plain model."""
    config = tmp_path / 'config.py'
    Config(dict(model=keyed_cfg(tiny_model_cfg(), f'file:{key_file}').to_dict())).dump(str(config))
    torch.save(
        {'meta': {}, 'state_dict': MODELS.build(Config.fromfile(str(config)).model).state_dict()},
        tmp_path / 'keyed.pth',
    )
    torch.save(MODELS.build(tiny_model_cfg()).state_dict(), tmp_path / 'plain.pth')
    return config, tmp_path / 'keyed.pth', tmp_path / 'plain.pth'


@pytest.mark.parametrize('name', COMMANDS)
def test_help_of_each_command(name):
    done = subprocess.run(
        [sys.executable, '-c', 'import sys; from keyseg_mm.cli import main; sys.exit(main())', name, '--help'],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0 and done.stderr == '', 'and no warning of what it imports'
    assert '--' in done.stdout and len(done.stdout) > 300


def test_help_imports_nothing_heavy():
    code = (
        'import sys; from keyseg_mm.cli import build_parser; build_parser([]).format_help(); '
        "print([m for m in ('torch', 'numpy', 'mmengine') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout.strip() == '[]'


def test_the_help_is_short_and_in_groups():
    text = build_parser([]).format_help()
    assert len(COMMANDS) <= 13 and all(re.search(rf'^  {name} +[a-z]', text, flags=re.MULTILINE) for name in COMMANDS)
    places = [text.index(f'\n{group}\n') for group in GROUPS]
    assert places == sorted(places) and 'encrypt_images' in text
    assert all(f'\n  {number:<4} ' in text for number in STATUS)


@pytest.mark.parametrize(
    ('line', 'offered'),
    [('keyseg lo', {'lock '}), ('keyseg show x --js', {'--json '}), ('keyseg test a.py b.pth --runtime ', {'plain'})],
)
def test_a_shell_completes(line, offered, tmp_path):
    out = tmp_path / 'out'
    told = {'_ARGCOMPLETE': '1', 'COMP_LINE': line, 'COMP_POINT': str(len(line)), '_ARGCOMPLETE_STDOUT_FILENAME': out}
    code = 'from keyseg_mm.cli import main; main()'
    env = {**os.environ, **told, '_ARGCOMPLETE_IFS': ';'}
    subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, timeout=60)
    assert offered <= {*out.read_text().split(';')}


def test_what_is_shown_as_json(model_files, key_file, key, capsys, tmp_path):
    def facts(*words, status=0):
        assert keyseg(*words, '--json') == status
        return json.loads(capsys.readouterr().out)

    config, keyed, plain = model_files
    assert facts('show', key_file)['key_id'] == key.id
    (stamp,) = facts('show', keyed)['stamps']
    assert stamp['key_ids'] == [key.id] and 'ChannelPermutation' in json.dumps(stamp)
    assert facts('show', plain)['stamps'] == []
    assert facts('show', config)['protected'][0]['key_id'] == key.id
    points = facts('show', config, '--points', 'stages')['points']
    assert {point['point'] for point in points} >= {'out:backbone:2', 'out:backbone:3'} and points[0]['channels'] > 1
    (tmp_path / 'logs').mkdir()
    (tmp_path / 'logs' / 'log.txt').write_text(key.to_text())
    found = facts('scan', tmp_path / 'logs', '--key', f'file:{key_file}', status=FOUND)
    assert 'log.txt' in found['found'][0] and key.to_text() not in str(found)


def test_a_checkpoint_behind_options_is_found(capsys):
    def said(*arguments):
        assert keyseg('audit', 'config.py', *arguments) == 1
        return capsys.readouterr().err

    assert '--device goes with' in said('--device', 'cpu', '--key', 'none', '--out', 'out')
    assert '--device goes with' not in said('--device', 'cpu', '--key', 'none', '--out', 'out', 'locked.pth')
    with pytest.raises(SystemExit):
        keyseg('audit', 'config.py', '--key', 'none', '--out', 'out', 'a.pth', 'b.pth')


def test_keygen(tmp_path, capsys, monkeypatch):
    path = tmp_path / 'new.key'
    assert keyseg('keygen', '--out', path) == 0
    printed = capsys.readouterr().out
    key = read_key_file(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert key.id in printed and key.to_text() not in printed and f'file:{path}' in printed
    before = path.read_bytes()
    assert keyseg('keygen', '--out', path) == 1
    assert 'exists already' in capsys.readouterr().err and path.read_bytes() == before
    assert keyseg('keygen', '--out', tmp_path / 'no' / 'such' / 'folder.key') == 0
    assert {stat.S_IMODE(folder.stat().st_mode) for folder in (tmp_path / 'no', tmp_path / 'no' / 'such')} == {0o700}
    assert keyseg('keygen', '--out', path / 'x.key') == 1
    assert 'could not' in capsys.readouterr().err and path.read_bytes() == before


def test_keygen_for_a_licensee(tmp_path, key_file, key, capsys):
    assert keyseg('keygen', '--master', f'file:{key_file}', '--licensee', 'ACME', '--out', tmp_path / 'acme.key') == 0
    assert read_key_file(tmp_path / 'acme.key') == key.licensee('ACME')
    assert keyseg('keygen', '--licensee', 'ACME', '--out', tmp_path / 'x.key') == 1
    assert keyseg('keygen', '--master', 'none', '--licensee', 'ACME', '--out', tmp_path / 'x.key') == 1
    assert keyseg('keygen', '--master', key.to_text(), '--licensee', 'ACME', '--out', tmp_path / 'x.key') == 1
    assert key.to_text() not in ''.join(capsys.readouterr())
    assert not (tmp_path / 'x.key').exists()


def test_sealed_keygen_and_show(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv('KEYSEG_PASSPHRASE', 'correct horse')
    path = tmp_path / 'sealed.key'
    assert keyseg('keygen', '--out', path, '--passphrase') == 0
    assert 'KEYSEG-SECRET-KEY' not in path.read_text()
    assert keyseg('show', path) == 0
    monkeypatch.setenv('KEYSEG_PASSPHRASE', 'wrong')
    assert keyseg('show', path) == 1
    captured = ''.join(capsys.readouterr())
    assert 'passphrase is wrong' in captured and 'correct horse' not in captured


def test_show(model_files, key_file, key, capsys):
    config, keyed, plain = model_files
    for path, words in (
        (key_file, [key.id]),
        (keyed, [key.id, 'out:backbone:3', 'ChannelPermutation', 'salt']),
        (plain, ['plain checkpoint']),
        (config, [key.id, 'EncoderDecoder', f'file:{key_file}']),
    ):
        assert keyseg('show', path) == 0
        printed = capsys.readouterr().out
        assert all(word in printed for word in words), (path, printed)
        assert key.to_text() not in printed
    key_file.chmod(0o644)
    keyseg('show', key_file)
    assert 'chmod 600' in capsys.readouterr().out


@pytest.mark.parametrize('content', [b'', b'garbage', None, 'truncated', 'code'])
def test_show_of_bad_files(content, tmp_path, model_files, capsys):
    path = tmp_path / 'bad.pth'
    witness = tmp_path / 'witness'
    if content == 'truncated':
        whole = model_files[1].read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
    elif content == 'code':
        torch.save({'state_dict': {}, 'x': Malicious(str(witness))}, path)
    elif content is not None:
        path.write_bytes(content)
    assert keyseg('show', path) == 1
    printed = capsys.readouterr().err
    assert 'bad.pth' in printed and 'Traceback' not in printed
    assert not witness.exists()


class Malicious:
    """Its pickle creates a file when it is read by an unguarded reader."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, 'w'))


def test_points(model_files, capsys):
    config = model_files[0]
    assert keyseg('show', config, '--points', 'stages') == 0
    printed = capsys.readouterr().out
    assert 'out:backbone:0' in printed and '2 points of EncoderDecoder' in printed and 'test+train' in printed
    assert keyseg('show', config, '--match', 'in:auxiliary') == 0
    assert 'train' in capsys.readouterr().out
    assert keyseg('show', config, '--points', 'in:nope') == 1
    assert 'no module of that name' in capsys.readouterr().err
    assert keyseg('show', config, '--points') == 0
    assert 'in:backbone.conv1' in capsys.readouterr().out
    assert keyseg('show', 'missing.py', '--points') == 1
    assert keyseg('show', model_files[1], '--points') == 1
    assert 'is no config' in capsys.readouterr().err


def test_scan(tmp_path, model_files, key_file, key, capsys):
    folder, locator = tmp_path / 'run', ('--key', f'file:{key_file}')
    folder.mkdir()
    model_files[1].rename(folder / 'keyed.bin')
    assert keyseg('scan', folder, *locator) == 0
    assert 'the secrets of 2 points' in capsys.readouterr().out
    (folder / 'log.txt').write_text(key.to_text())
    assert keyseg('scan', folder, *locator) == FOUND
    printed = capsys.readouterr().out
    assert 'FOUND' in printed and 'log.txt' in printed and key.to_text() not in printed
    assert keyseg('scan', tmp_path / 'nothing', *locator) == 1
    assert keyseg('scan', folder, '--key', 'none') == 1


def test_scan_knows_files_elsewhere_and_says_what_it_did_not_read(tmp_path, model_files, key_file, key, capsys):
    run, locator = tmp_path / 'run', ('--key', f'file:{key_file}')
    run.mkdir()
    assert keyseg('lock', model_files[2], *locator, '--out', tmp_path / 'sealed.pth') == 0
    (stamp,) = stamps_in(tmp_path / 'sealed.pth').values()
    (run / 'log.txt').write_text(f'content key {list(open_envelope(key, stamp).content.material)}')
    assert keyseg('scan', run, *locator) == 0
    assert keyseg('scan', run, *locator, '--checkpoint', tmp_path / 'sealed.pth') == FOUND
    assert "the file's content key" in capsys.readouterr().out
    assert keyseg('scan', run, *locator, '--checkpoint', model_files[2]) == 1, 'a plain file tells nothing'
    (run / 'log.txt').unlink()
    (run / 'broken.pth').write_bytes(b'no checkpoint')
    assert keyseg('scan', run, *locator) == UNREAD
    assert 'NOT READ the stamp of' in capsys.readouterr().out


@pytest.mark.parametrize('name', ['train', 'test'])
def test_host_tools_are_found_and_take_no_secrets(name, key, capsys):
    assert host_tool(name).is_file()
    hexadecimal = key.material.hex()
    for argument in (key.to_text(), f'model.protection.key={key.to_text()}', f'model.protection.key={hexadecimal}'):
        assert keyseg(name, 'config.py', '--cfg-options', argument) == 1
        captured = ''.join(capsys.readouterr())
        assert 'burnt' in captured and key.to_text() not in captured and hexadecimal not in captured
