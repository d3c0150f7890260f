"""What looks for leftovers of killed commands finds every kind of them, and nothing where all is well."""

from __future__ import annotations

import shutil

import pytest

from tests.support.kills.commands import COMMANDS, KEY, Command, make
from tests.support.kills.findings import Look, is_whole, pattern, samples

SEALED, OPEN = Command('', 1), Command('', 1, opens='.*')
MADE = {'run/out.pth': '', 'run/out.key': '', 'run/out#.png': ''}


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp('kills') / 'made'
    make(folder)
    return folder


@pytest.fixture
def left(tmp_path, made):
    """What a command leaves that came to its end."""
    (tmp_path / 'run').mkdir()
    (tmp_path / 'tmp').mkdir()
    shutil.copy(made / 'locked.pth', tmp_path / 'run' / 'out.pth')
    shutil.copy(made / 'right.key', tmp_path / 'run' / 'out.key')
    shutil.copy(next((made / 'images').iterdir()), tmp_path / 'run' / 'out7.png')
    return tmp_path


def plant(folder, name, content, mode=0o600):
    (folder / name).write_bytes(content)
    (folder / name).chmod(mode)


def test_every_kind_is_found(made, left):
    look = Look(made)
    assert not look(left, SEALED, MADE)
    plain, locked = (made / 'plain.pth').read_bytes(), (made / 'locked.pth').read_bytes()
    plant(left, 'run/.keyseg-1', locked)
    plant(left, 'tmp/half', plain[: len(plain) // 2], 0o644)
    plant(left, 'run/key.log', KEY.material.hex().encode())
    found = look(left, SEALED, MADE)
    assert found.left == ['run/.keyseg-1', 'run/key.log', 'tmp/half']
    assert found.secret == ['run/key.log', 'tmp/half'] and found.wide == ['tmp/half'] and not found.half
    for name in found.left:
        (left / name).unlink()
    plant(left, 'run/out.pth', plain, 0o644)
    assert look(left, SEALED, MADE).secret == ['run/out.pth']
    assert look(left, OPEN, MADE).secret == [] and look(left, OPEN, MADE).wide == ['run/out.pth']
    plant(left, 'run/out.pth', locked[:-100])
    plant(left, 'run/out.key', (made / 'right.key').read_bytes()[:-10], 0o640)
    plant(left, 'run/out8.png', (left / 'run' / 'out7.png').read_bytes()[:-10])
    found = look(left, SEALED, MADE)
    assert found.half == ['run/out.key', 'run/out.pth', 'run/out8.png'] and found.wide == ['run/out.key']
    (made / 'a.recipient').write_text('other')
    assert look(left, SEALED, MADE).changed == ['a.recipient']


def test_what_is_looked_for(made):
    assert len(samples(made)) > 20
    assert pattern('run/20261127_1/iter_4.pth') == 'run/#_#/iter_#.pth'
    assert is_whole(made / 'mapped.pth', 'mapped.pth') and is_whole(made / 'other.key', 'other.key')
    assert sum(command.kills for command in COMMANDS.values()) == 1000
