"""Files of data-parallel runs, whose names begin with ``module.``, are what they are without it."""

from __future__ import annotations

import pytest
import torch
from mmengine.config import Config
from mmseg.registry import MODELS

from keyseg_mm import attach, entries_at, lock, resolve, write_key_file
from keyseg_mm.checkpoint.files import read_checkpoint
from keyseg_mm.errors import LockError
from keyseg_mm.locking import unlock
from keyseg_mm.mm.dryrun import trace_module
from tests.support.cli import keyseg
from tests.support.configs import keyed_cfg, normed_model, tiny_model_cfg
from tests.support.files import KEY, OTHER


def wrapped(state):
    return {f'module.{name}': value for name, value in state.items()}


def weights(path):
    """Without stamps, and without the prefix."""
    content = read_checkpoint(path)['state_dict']
    return {name.removeprefix('module.'): t for name, t in content.items() if 'keyseg_stamp' not in name}


def alike(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    """Plain, locked and keyed files as data-parallel runs write them, and the plain weights of each."""
    folder = tmp_path_factory.mktemp('runs')
    write_key_file(folder / 'my.key', KEY)
    write_key_file(folder / 'new.key', OTHER)
    (folder / 'customers.txt').write_text('ACME\n')
    Config(dict(model=tiny_model_cfg().to_dict())).dump(str(folder / 'config.py'))
    model = normed_model()
    plain = model.state_dict()
    keyed = MODELS.build(keyed_cfg(tiny_model_cfg(), f'file:{folder}/my.key', points='linear')).state_dict()
    states = {'plain': plain, 'locked': lock(plain, model, KEY), 'keyed': keyed}
    for name, state in states.items():
        torch.save({'state_dict': wrapped(state)}, folder / f'{name}.pth')
    return folder, {'plain': plain, 'locked': plain, 'keyed': unlock(keyed, KEY, normed_model())}


@pytest.mark.parametrize('name', ['plain', 'locked', 'keyed'])
def test_sealed_alone(name, runs, tmp_path, capsys):
    folder, plain = runs
    key = ('--key', f'file:{folder}/my.key')
    assert keyseg('lock', folder / f'{name}.pth', *key, '--out', tmp_path / 'sealed.pth') == 0
    assert keyseg('show', tmp_path / 'sealed.pth') == 0
    assert ('protected at module' in capsys.readouterr().out) == (name != 'plain')
    assert keyseg('rekey', tmp_path / 'sealed.pth', *key, '--new-key', f'file:{folder}/new.key',
                  '--out', tmp_path / 'theirs.pth') == 0  # fmt: skip
    for path, holder in (('sealed', 'my'), ('theirs', 'new')):
        how = ('--key', f'file:{folder}/{holder}.key', '--keep-maps', '--overwrite', '--out', tmp_path / 'opened.pth')
        assert keyseg('unlock', tmp_path / f'{path}.pth', *how) == 0
        assert alike(weights(tmp_path / 'opened.pth'), weights(folder / f'{name}.pth'))


@pytest.mark.parametrize('name', ['locked', 'keyed'])
def test_maps_are_taken_out_and_changed(name, runs, tmp_path, capsys):
    folder, plain = runs
    given = ('--config', folder / 'config.py', '--key', f'file:{folder}/my.key')
    assert not alike(weights(folder / f'{name}.pth'), plain[name])
    assert keyseg('unlock', folder / f'{name}.pth', *given, '--out', tmp_path / 'plain.pth') == 0
    assert alike(weights(tmp_path / 'plain.pth'), plain[name])
    new = ('--new-key', f'file:{folder}/new.key', '--new-maps', '--out', tmp_path / 'new.pth')
    assert keyseg('rekey', folder / f'{name}.pth', *given, *new) == 0
    new = ('--config', folder / 'config.py', '--key', f'file:{folder}/new.key', '--out', tmp_path / 'plain too.pth')
    assert keyseg('unlock', tmp_path / 'new.pth', *new) == 0
    assert alike(weights(tmp_path / 'plain too.pth'), plain[name])


def test_a_licensees_copy_is_traced(runs, tmp_path, capsys):
    folder, _ = runs
    master = ('--master', f'file:{folder}/my.key')
    assert keyseg('rekey', folder / 'locked.pth', *master, '--licensee', ' ACME', '--out', tmp_path / 'acme.pth') == 0
    torch.save(weights(folder / 'plain.pth'), tmp_path / 'plain.pth')
    for original in (folder / 'plain.pth', tmp_path / 'plain.pth', folder / 'locked.pth'):
        assert keyseg('trace', tmp_path / 'acme.pth', *master, '--licensees', folder / 'customers.txt',
                      '--original', original) == 0  # fmt: skip
        assert "this is the copy of 'ACME'" in capsys.readouterr().out


def test_a_stamp_of_no_part_of_the_model():
    model = normed_model()
    sites = resolve('out:backbone:3', model, trace_module(model))
    attach(model, KEY, sites, entries_at(sites))  # a stamp that does not know its weights
    state = {f'other.module.{name}': value for name, value in model.state_dict().items()}
    with pytest.raises(LockError, match='a stamp of other.module, and the model'):
        unlock(state, KEY, normed_model())
