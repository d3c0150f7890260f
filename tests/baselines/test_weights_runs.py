"""Encrypted weights as a user meets them: commands, files of both kinds, and the host's own ways to load a model."""

from __future__ import annotations

import logging
import pickle
import re

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from mmseg.apis import inference_model, init_model
from mmseg.registry import MODELS

from keyseg_mm import SecretKey, find_leaks, read_key_file, stamps_of, unlock_model, write_key_file
from keyseg_mm.bind import digest
from keyseg_mm.checkpoint.files import read_checkpoint, stamps_in, write_checkpoint
from keyseg_mm.cli.status import NOT_TRACED
from keyseg_mm.envelope import SEALED
from keyseg_mm.errors import IntegrityError, KeyMismatchError, NotFiredError, PlanMismatchError
from keyseg_mm.stamp import is_stamp
from tests.support.cli import keyseg
from tests.support.configs import keyed_cfg, runner_cfg, tiny_model_cfg
from tests.support.files import opened_weights

KEY, OTHER = SecretKey(bytes(range(32))), SecretKey(bytes(range(1, 33)))
MODES = {'tensors': ['--scheme', 'tensors'], 'selective': ['--scheme', 'selective', '--share', '0.05']}
PICTURE = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
by_mode = pytest.mark.parametrize('mode', MODES)


def lock_line(made, out, mode):
    key = f'file:{made}/right.key'
    return ['lock', made / 'plain.pth', '--config', made / 'plain.py', '--key', key, '--out', out, *MODES[mode]]


@pytest.fixture(scope='module')
def made(tmp_path_factory, tiny_cityscapes):
    """A plain model and its locked versions, made by the command; nobody changes them."""
    folder = tmp_path_factory.mktemp('made')
    for name, key in (('right', KEY), ('other', OTHER)):
        write_key_file(folder / f'{name}.key', key)
    torch.manual_seed(0)
    model = MODELS.build(tiny_model_cfg())
    for norm in model.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            for value in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
                value.uniform_(0.5, 1.5)
    meta = {'epoch': 3, 'dataset_meta': {'classes': ['a'] * 19, 'palette': [[1, 2, 3]] * 19}}
    torch.save({'meta': meta, 'state_dict': model.state_dict(), 'optimizer': {'lr': 1}}, folder / 'plain.pth')
    runner_cfg(tiny_cityscapes, folder / 'work', tiny_model_cfg()).dump(str(folder / 'plain.py'))
    keyed = keyed_cfg(tiny_model_cfg(), f'file:{folder}/right.key', runtime='plain')
    runner_cfg(tiny_cityscapes, folder / 'work', keyed).dump(str(folder / 'keyed.py'))
    for mode in MODES:
        assert keyseg(*lock_line(folder, folder / f'{mode}.pth', mode)) == 0
    return folder


@pytest.fixture
def here(made, monkeypatch, tmp_path):
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return made


def locked(made, mode):
    return made / f'{mode}.pth'


def weights(path):
    return {n: t for n, t in read_checkpoint(path)['state_dict'].items() if 'keyseg_stamp' not in n}


def same(a, b):
    return a.keys() == b.keys() and all(digest(a[n]) == digest(b[n]) and a[n].dtype == b[n].dtype for n in a)


def score(made, checkpoint, config='keyed.py', **changes):
    cfg = Config.fromfile(str(made / config))
    cfg.load_from = str(checkpoint)
    cfg.work_dir = str(made / 'work')
    cfg.merge_from_dict(changes)
    return Runner.from_cfg(cfg).test()


def logits(made, checkpoint, config='keyed.py', **changes):
    cfg = Config.fromfile(str(made / config))
    cfg.merge_from_dict(changes)
    model = init_model(cfg, str(checkpoint), device='cpu')
    return inference_model(model, PICTURE).seg_logits.data


# ---- commands


@by_mode
def test_from_plain_to_plain_by_the_commands(here, mode, capsys):
    plain, source = weights(here / 'plain.pth'), locked(here, mode)
    assert sorted(weights(source)) == sorted(plain) and not same(weights(source), plain)
    assert set(read_checkpoint(source)) == {'meta', 'state_dict'}
    assert read_checkpoint(source)['meta']['epoch'] == 3
    rekey = ['rekey', source, '--key', f'file:{here}/right.key', '--new-key', f'file:{here}/other.key', '--new-maps']
    assert keyseg(*rekey, '--out', 'rekeyed.safetensors') == 0
    assert f'{len(stamps_in(source)[""].tensors)} tensors' in capsys.readouterr().out
    assert keyseg('unlock', 'rekeyed.safetensors', '--key', f'file:{here}/right.key', '--out', 'no.pth') == 1
    assert OTHER.id in capsys.readouterr().err
    assert keyseg('unlock', 'rekeyed.safetensors', '--key', f'file:{here}/other.key', '--out', 'back.pth') == 0
    assert same(weights('back.pth'), plain) and not stamps_in('back.pth')
    assert keyseg(*lock_line(here, 'direct.safetensors', mode)) == 0
    assert keyseg('unlock', 'direct.safetensors', '--key', f'file:{here}/right.key', '--out', 'again.safetensors') == 0
    assert same(weights('again.safetensors'), plain)
    one, two = opened_weights(source), opened_weights('rekeyed.safetensors', OTHER)
    assert not any(same({'x': one[n]}, {'x': two[n]}) for e in stamps_of(one)[''].tensors[:5] for n in e.names)
    assert not find_leaks(source, KEY, stamps_in(source).values())


@by_mode
def test_lock_says_what_it_does(here, mode, capsys):
    lock = ['lock', here / 'plain.pth', '--config', here / 'plain.py']
    assert keyseg(*lock, '--dry-run', *MODES[mode]) == 0
    out = capsys.readouterr().out
    assert 'tensors are moved' in out and re.search('with the key +bit for bit', out) and 'nothing was written' in out
    assert 'num_batches_tracked' in out
    assert keyseg(*lock, '--key', f'file:{here}/right.key', '--out', 'x.pth', *MODES[mode]) == 0
    out = capsys.readouterr().out
    assert 'keyseg test' in out and "points='checkpoint'" not in out and 'optimizer' in out
    assert keyseg('show', 'x.pth') == 0
    out = capsys.readouterr().out
    assert KEY.id in out and 'runtime=plain' in out and 'decode_head.conv_seg.weight' in out


def test_options_that_do_not_go_together(here, capsys):
    lock = ['lock', here / 'plain.pth', '--config', here / 'plain.py', '--dry-run']
    for share in ('0.1', '0'):
        assert keyseg(*lock, '--share', share) == 1
        assert '--share goes with --scheme selective' in capsys.readouterr().err
    assert keyseg(*lock, '--scheme', 'tensors', '--share', '0.1') == 1
    assert '--share goes with --scheme selective' in capsys.readouterr().err
    assert keyseg(*lock, '--scheme', 'tensors', '--points', 'linear') == 1
    assert '--scheme features' in capsys.readouterr().err
    assert keyseg(*lock, '--scheme', 'selective', '--share', '7') == 1
    assert 'above 0' in capsys.readouterr().err


def test_lock_warns_where_too_little_is_moved(here, capsys):
    lock = [
        'lock',
        here / 'plain.pth',
        '--config',
        here / 'plain.py',
        '--key',
        f'file:{here}/right.key',
        '--out',
        'x.pth',
    ]
    assert keyseg(*lock, '--scheme', 'selective', '--share', '0.00002') in (0, 1)
    said = capsys.readouterr()
    assert 'WARNING: these values barely change' in said.out or 'Take a larger --share' in said.err
    assert keyseg(*lock, '--scheme', 'selective', '--share', '0.000001', '--overwrite') == 1
    assert 'larger share' in capsys.readouterr().err


@by_mode
def test_a_licensees_copy(here, mode, capsys):
    with open('customers.txt', 'w') as file:
        file.write('ACME Ltd\nBolt\n')
    master = ['--master', f'file:{here}/right.key']
    assert keyseg('rekey', locked(here, mode), *master, '--licensee', 'Bolt', '--out', 'bolt.pth') == 0
    assert keyseg('keygen', *master, '--licensee', 'Bolt', '--out', 'bolt.key') == 0
    assert keyseg('unlock', 'bolt.pth', '--key', 'file:bolt.key', '--out', 'back.pth') == 0
    assert not same(weights('back.pth'), weights(here / 'plain.pth'))
    exact = ['--licensee', 'Bolt', '--no-fingerprint', '--out', 'exact.pth']
    assert keyseg('rekey', locked(here, mode), *master, *exact) == 0
    assert keyseg('unlock', 'exact.pth', '--key', 'file:bolt.key', '--out', 'exactly.pth') == 0
    assert same(weights('exactly.pth'), weights(here / 'plain.pth'))
    trace = [*master, '--licensees', 'customers.txt']
    capsys.readouterr()
    assert keyseg('trace', 'bolt.pth', *trace) == 0
    assert "copy of 'Bolt'; its seal fits" in capsys.readouterr().out
    stripped = opened_weights('exact.pth', read_key_file('bolt.key'))
    write_checkpoint('found.pth', {n: t for n, t in stripped.items() if not is_stamp(n)}, {})
    assert keyseg('trace', 'found.pth', *trace, '--original', locked(here, mode)) == 0
    assert "this is the copy of 'Bolt'" in capsys.readouterr().out
    assert keyseg('trace', 'back.pth', *trace, '--original', locked(here, mode)) == 0
    assert 'fingerprint' in capsys.readouterr().out
    assert keyseg('trace', 'exactly.pth', *trace, '--original', locked(here, mode)) == NOT_TRACED
    assert 'plain weights' in capsys.readouterr().out


def test_a_scan_knows_the_tables_of_tensors(here, capsys):
    source = locked(here, 'tensors')
    assert keyseg('scan', source, '--key', f'file:{here}/right.key') == 0
    assert f'the secrets of {len(stamps_in(source)[""].tensors)} points, tensors and images' in capsys.readouterr().out


# ---- the host's own ways


@by_mode
def test_the_right_key_is_the_plain_model(made, mode):
    plain = score(made, made / 'plain.pth', 'plain.py')
    assert score(made, locked(made, mode)) == plain
    expected = logits(made, made / 'plain.pth', 'plain.py')
    assert torch.equal(logits(made, locked(made, mode)), expected)
    for locator in ('none', 'random:1'):
        assert not torch.equal(logits(made, locked(made, mode), **{'model.protection.key': locator}), expected)


@by_mode
def test_what_those_without_the_right_key_meet(made, mode, caplog):
    source = locked(made, mode)
    with pytest.raises(KeyMismatchError, match=f'{KEY.id}.*{OTHER.id}'):
        score(made, source, **{'model.protection.key': f'file:{made}/other.key'})
    with caplog.at_level(logging.WARNING, 'keyseg_mm'):
        logits(made, source, **{'model.protection.key': 'none'})
        assert KEY.id in caplog.text and 'UNAUTHORISED' in caplog.text
        caplog.clear()
        logits(made, source, **{'model.protection.key': 'random:1'})
        assert 'a wrong key' in caplog.text
    for how in ({'points': 'checkpoint'}, {'points': 'stages'}):
        cfg = keyed_cfg(tiny_model_cfg(), f'file:{made}/right.key', **how)
        with pytest.raises(PlanMismatchError, match="protection.runtime='plain'"):
            init_model(Config(dict(Config.fromfile(str(made / 'plain.py')), model=cfg)), str(source), device='cpu')
    bare = logits(made, source, 'plain.py')  # an unkeyed model runs, degraded
    assert not torch.equal(bare, logits(made, made / 'plain.pth', 'plain.py'))


@by_mode
def test_an_altered_file_is_refused(made, mode, tmp_path):
    content = read_checkpoint(locked(made, mode))['state_dict']
    bias = content['decode_head.conv_seg.bias'].clone()
    bias.view(torch.int32)[0] ^= 1
    write_checkpoint(tmp_path / 'bad.pth', {**content, 'decode_head.conv_seg.bias': bias}, {})
    with pytest.raises(IntegrityError):
        score(made, tmp_path / 'bad.pth')
    with pytest.raises(IntegrityError):
        score(made, tmp_path / 'bad.pth', **{'model.protection.verify': False})
    assert keyseg('unlock', tmp_path / 'bad.pth', '--key', f'file:{made}/right.key', '--out', tmp_path / 'x.pth') == 1
    assert not (tmp_path / 'x.pth').exists()


@by_mode
def test_an_altered_signed_file_is_refused_unless_it_is_asked_for(made, mode, tmp_path):
    assert keyseg(*lock_line(made, tmp_path / 'signed.pth', mode), '--no-seal') == 0
    content = read_checkpoint(tmp_path / 'signed.pth')['state_dict']
    bias = content['decode_head.conv_seg.bias'].clone()
    bias.view(torch.int32)[0] ^= 1
    write_checkpoint(tmp_path / 'bad.pth', {**content, 'decode_head.conv_seg.bias': bias}, {})
    with pytest.raises(IntegrityError):
        score(made, tmp_path / 'bad.pth')
    assert score(made, tmp_path / 'bad.pth', **{'model.protection.verify': False})


def test_training_of_weights_that_were_opened_writes_sealed_files_alone(made, tmp_path):
    cfg = Config.fromfile(str(made / 'keyed.py'))
    cfg.load_from, cfg.work_dir = str(locked(made, 'tensors')), str(tmp_path)
    runner = Runner.from_cfg(cfg)
    runner.train()
    files = sorted(tmp_path.rglob('*.pth'))
    assert files and all(stamps_in(path)[''].seal.mode == SEALED for path in files)
    trained = opened_weights(tmp_path / 'iter_4.pth')
    assert same(trained, dict(runner.model.state_dict())) and not same(trained, weights(made / 'plain.pth'))
    raw = (tmp_path / 'iter_4.pth').read_bytes()
    assert not any(t.numpy().tobytes() in raw for t in trained.values() if t.nbytes >= 64)


def test_nothing_runs_before_a_checkpoint_is_loaded(made):
    cfg = Config.fromfile(str(made / 'keyed.py'))
    with pytest.raises(NotFiredError, match='no protected checkpoint'):
        Runner.from_cfg(cfg).test()


def test_a_live_model_is_unlocked_as_it_is_loaded(made):
    model = init_model(str(made / 'keyed.py'), str(locked(made, 'tensors')), device='cpu')
    state = model.state_dict()
    assert not stamps_of(state)
    assert same(dict(state), weights(made / 'plain.pth'))
    unlock_model(model)
    assert same(dict(model.state_dict()), weights(made / 'plain.pth'))


def test_a_model_without_a_key_puts_no_stamp_on_what_it_has(made):
    cfg = Config.fromfile(str(made / 'keyed.py'))
    cfg.model.protection.key = 'none'
    model = init_model(cfg, str(locked(made, 'selective')), device='cpu')
    found = model.state_dict()
    assert not stamps_of(found) and not same(found, weights(made / 'plain.pth'))
    with pytest.raises(KeyMismatchError, match='nothing is written'):
        pickle.dumps(found)
