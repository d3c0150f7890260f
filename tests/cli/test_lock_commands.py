"""keyseg lock, rekey, unlock and trace, as a user types them."""

from __future__ import annotations

import math
import re

import pytest
import torch
from mmengine.config import Config
from mmseg.registry import MODELS

from keyseg_mm import read_key_file, stamps_of, write_key_file
from keyseg_mm.checkpoint.files import read_checkpoint, write_checkpoint
from keyseg_mm.cli.lock import parse_transform
from keyseg_mm.cli.lock_report import _words
from keyseg_mm.cli.status import NOT_TRACED
from keyseg_mm.errors import LockError
from keyseg_mm.locking.proof import Agreement
from keyseg_mm.stamp import is_stamp
from tests.support.cli import keyseg
from tests.support.configs import tiny_model_cfg
from tests.support.files import opened_weights


@pytest.fixture
def files(tmp_path, monkeypatch, key_file, other_key_file):
    """A config and its plain checkpoint, in the current folder, with two keys."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    Config(dict(model=tiny_model_cfg().to_dict())).dump('config.py')
    model = MODELS.build(tiny_model_cfg())
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.5)
    torch.save({'meta': {'epoch': 3}, 'state_dict': model.state_dict(), 'optimizer': {'lr': 1}}, 'plain.pth')
    return tmp_path


def state(name):
    return read_checkpoint(name)['state_dict']


def same(a, b):
    a, b = state(a), state(b)
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def test_lock_rekey_and_unlock(files, capsys):
    assert keyseg('lock', 'plain.pth', '--config', 'config.py', '--key', 'file:right.key', '--out', 'locked.pth') == 0
    out = capsys.readouterr().out
    assert 'in:backbone.conv1' in out and 'points carry' in out
    assert 'with the key' in out and 'WARNING' not in out
    assert 'dropped' in out and 'optimizer' in out
    locked = read_checkpoint('locked.pth')
    assert set(locked) == {'meta', 'state_dict'}
    assert locked['meta'] == {'epoch': 3}
    assert not same('locked.pth', 'plain.pth')

    rekey = ['rekey', 'locked.pth', '--key', 'file:right.key', '--new-key', 'file:other.key']
    assert keyseg(*rekey, '--out', 'rekeyed.safetensors') == 0
    assert stamps_of(state('rekeyed.safetensors'))[''].key_id != stamps_of(state('locked.pth'))[''].key_id
    assert keyseg('unlock', 'rekeyed.safetensors', '--key', 'file:other.key', '--out', 'back.pth') == 0
    assert same('back.pth', 'plain.pth')
    assert read_checkpoint('back.pth')['meta'] == {'epoch': 3}
    assert keyseg('unlock', 'rekeyed.safetensors', '--key', 'file:right.key', '--out', 'wrong.pth') == 1
    error = capsys.readouterr().err
    assert 'the key given is' in error and 'KEYSEG' not in error
    assert not (files / 'wrong.pth').exists()


def test_a_dry_run_writes_nothing(files, capsys):
    before = sorted(files.iterdir())
    assert keyseg('lock', 'plain.pth', '--config', 'config.py', '--dry-run', '--transform', 'ChannelRotation:4') == 0
    out = capsys.readouterr().out
    assert 'ChannelRotation(block=4)' in out and 'nothing was written' in out
    assert sorted(files.iterdir()) == before


def test_lock_warns_of_points_that_barely_matter(files, capsys):
    content = read_checkpoint('plain.pth')
    content['state_dict']['backbone.layer4.1.bn2.weight'].fill_(0.3)
    write_checkpoint('weak.pth', content['state_dict'], {})
    lock = ['lock', 'weak.pth', '--config', 'config.py', '--key', 'file:right.key', '--out', 'locked.pth']
    assert keyseg(*lock, '--points', 'in:backbone.layer4.1.conv2') == 0
    out = capsys.readouterr().out
    assert 'WARNING: these points barely change the output' in out and 'Whoever' in out
    assert 'WARNING: only one feature map is encrypted' in out and 'labelled photos' in out
    content['state_dict']['backbone.layer4.1.bn2.weight'].fill_(0)
    write_checkpoint('dead.pth', content['state_dict'], {})
    lock = ['lock', 'dead.pth', '--config', 'config.py', '--key', 'file:right.key', '--out', 'nothing.pth']
    assert keyseg(*lock, '--points', 'in:backbone.layer4.1.conv2') == 1
    assert 'nothing would be protected' in capsys.readouterr().err
    assert not (files / 'nothing.pth').exists()


def test_lock_needs_a_real_key_and_a_target(files, capsys):
    assert keyseg('lock', 'plain.pth', '--config', 'config.py') == 1
    assert '--dry-run' in capsys.readouterr().err
    assert keyseg('lock', 'plain.pth', '--config', 'config.py', '--key', 'random:1', '--out', 'x.pth') == 1
    assert keyseg('lock', 'plain.pth', '--config', 'config.py', '--key', 'none', '--out', 'x.pth') == 1
    assert 'real key' in capsys.readouterr().err
    assert keyseg('lock', 'plain.pth', '--config', 'config.py', '--key', 'file:right.key', '--out', 'plain.pth') == 1
    assert 'exists already' in capsys.readouterr().err


def test_a_licensees_copy_is_opened_by_his_key_and_traced(files, capsys):
    (files / 'customers.txt').write_text('# of 2026\nACME Ltd\nBolt\n\nCrux GmbH\n')
    keyseg('lock', 'plain.pth', '--config', 'config.py', '--key', 'file:right.key', '--out', 'locked.pth')
    master = ['--master', 'file:right.key']
    assert keyseg('rekey', 'locked.pth', *master, '--licensee', 'Bolt', '--out', 'bolt.pth') == 0
    assert keyseg('keygen', *master, '--licensee', 'Bolt', '--out', 'bolt.key') == 0
    assert keyseg('unlock', 'bolt.pth', '--key', 'file:bolt.key', '--out', 'back.pth') == 0
    assert not same('back.pth', 'plain.pth')
    exact = ['--licensee', 'Bolt', '--no-fingerprint']
    assert keyseg('rekey', 'locked.pth', *master, *exact, '--out', 'exact.pth') == 0
    assert 'no fingerprint' in capsys.readouterr().out
    assert keyseg('unlock', 'exact.pth', '--key', 'file:bolt.key', '--out', 'exactly.pth') == 0
    assert same('exactly.pth', 'plain.pth')
    assert keyseg('rekey', 'locked.pth', *master, '--licensee', 'Bolt', '--out', 'again.pth') == 0
    bolts = read_key_file('bolt.key')
    one, two = (opened_weights(name, bolts) for name in ('bolt.pth', 'again.pth'))
    assert one.keys() == two.keys() == state('bolt.pth').keys()
    assert all(torch.equal(one[n], two[n]) for n in one if not is_stamp(n)), 'nothing of it needs to be kept'
    capsys.readouterr()

    trace = [*master, '--licensees', 'customers.txt']
    assert keyseg('trace', 'bolt.pth', *trace) == 0
    assert "copy of 'Bolt'; its seal fits" in capsys.readouterr().out
    stripped = {n: v for n, v in one.items() if not is_stamp(n)}
    write_checkpoint('found.pth', stripped, {})
    assert keyseg('trace', 'found.pth', *trace) == NOT_TRACED
    assert '--original' in capsys.readouterr().out
    exact = {n: v for n, v in opened_weights('exact.pth', bolts).items() if not is_stamp(n)}
    write_checkpoint('maps.pth', exact, {})
    for original in ('plain.pth', 'locked.pth'):
        for found in ('found.pth', 'back.pth', 'bolt.pth', 'maps.pth'):
            assert keyseg('trace', found, *trace, '--original', original) == 0
            assert "this is the copy of 'Bolt'" in capsys.readouterr().out
        assert keyseg('trace', 'exactly.pth', *trace, '--original', original) == NOT_TRACED
        assert 'plain weights' in capsys.readouterr().out


def test_rekey_and_trace_say_what_is_missing(files, capsys):
    keyseg('lock', 'plain.pth', '--config', 'config.py', '--key', 'file:right.key', '--out', 'locked.pth')
    capsys.readouterr()
    assert keyseg('rekey', 'locked.pth', '--key', 'file:right.key', '--out', 'x.pth') == 1
    assert '--new-key' in capsys.readouterr().err
    assert keyseg('rekey', 'locked.pth', '--new-key', 'file:other.key', '--out', 'x.pth') == 1
    assert '--key' in capsys.readouterr().err
    (files / 'empty.txt').write_text('# nobody\n')
    assert keyseg('trace', 'locked.pth', '--master', 'file:right.key', '--licensees', 'empty.txt') == 1
    assert 'no names' in capsys.readouterr().err
    assert not (files / 'x.pth').exists()


def test_unlock_of_a_trained_checkpoint_needs_no_config(files, key):
    from tests.support.configs import keyed_cfg

    write_key_file('trained.key', key)
    cfg = keyed_cfg(tiny_model_cfg(), 'file:trained.key', points=['out:backbone:2', 'out:backbone:3'])
    Config(dict(model=cfg.to_dict())).dump('keyed.py')
    write_checkpoint('trained.pth', MODELS.build(cfg).state_dict(), {})
    for more in ([], ['--config', 'keyed.py']):
        out = f'plain{len(more)}.pth'
        assert keyseg('unlock', 'trained.pth', '--key', 'file:trained.key', *more, '--out', out) == 0
        assert not stamps_of(state(out))


def test_transforms_on_the_command_line():
    assert parse_transform('ChannelPermutation') == 'ChannelPermutation'
    assert parse_transform('ChannelRotation:16') == {'type': 'ChannelRotation', 'block': 16}
    for block in ('x', '-1', '9' * 5000):
        with pytest.raises(LockError, match='NAME:BLOCK'):
            parse_transform(f'ChannelRotation:{block}')


def test_lock_warns_of_layers_that_are_close_to_public_weights(files, capsys):
    def said(public, *more):
        write_checkpoint('public.pth', public, {}, overwrite=True)
        assert keyseg('lock', 'plain.pth', '--config', 'config.py', '--dry-run', '--public', 'public.pth', *more) == 0
        return capsys.readouterr().out

    plain, close = state('plain.pth'), 'are close to public weights (public.pth)'
    torch.manual_seed(5)
    other = MODELS.build(tiny_model_cfg()).state_dict()
    out = said(other)
    assert close not in out and 'none of' in out and 'the nearest, by distance' in out
    mixed = {name: plain[name] if 'backbone.layer1' in name else value for name, value in other.items()}
    out = said(mixed)
    assert re.search(r'WARNING: 4 of \d\d layers are close', out) and 'backbone.layer1.0.conv1 (0.000)' in out
    assert 'from random weights' in out and 'fine-tune longer' in out and 'nothing was written' in out
    backbone = {n.removeprefix('backbone.'): v for n, v in plain.items() if n.startswith('backbone.')}
    assert re.search(r'WARNING: (\d+) of \1 layers', said(backbone)), 'by the names of a pretrained backbone'
    tuned = {n: v + 0.02 * v.abs().mean() * torch.randn_like(v) if v.dim() > 1 else v for n, v in plain.items()}
    assert close in said(tuned), 'fine-tuned a little'
    points = ['--points', 'out:backbone:3', '--transform', 'ChannelPermutation']  # the head reads it
    heads = {n: v for n, v in plain.items() if n.startswith('decode_head')}
    out = said(heads, *points)
    assert 'WARNING: 1 of 1 layers' in out and 'decode_head.convs.0.conv (0.000)' in out
    assert 'none of the layers to be locked is in public.pth' in said(backbone, *points)


def test_what_is_no_public_file_is_refused_before_the_lock(files, capsys):
    lock = ['lock', 'plain.pth', '--config', 'config.py', '--key', 'file:right.key', '--out', 'locked.pth']
    assert keyseg(*lock) == 0 and 'hint:' not in capsys.readouterr().out
    for name, content in (('other.pth', {'x': torch.ones(2)}), ('locked.pth', state('locked.pth'))):
        write_checkpoint(name, content, {}, overwrite=True)
        assert keyseg(*lock[:-1], 'again.pth', '--public', name) == 1
        error = capsys.readouterr().err
        assert '--public' in error and name in error
    assert keyseg(*lock[:-1], 'again.pth', '--public', 'nowhere.pth') == 1
    assert not (files / 'again.pth').exists()


def test_lock_hints_at_the_public_weights_that_a_config_names(files, capsys):
    model = tiny_model_cfg().to_dict()
    model['backbone']['init_cfg'] = dict(type='Pretrained', checkpoint='open-mmlab://resnet18_v1c')
    Config(dict(model=model, load_from='https://somewhere/model.pth')).dump('named.py')
    assert keyseg('lock', 'plain.pth', '--config', 'named.py', '--dry-run') == 0
    hint = next(line for line in capsys.readouterr().out.splitlines() if line.startswith('hint:'))
    assert 'open-mmlab://resnet18_v1c' in hint and 'https://somewhere/model.pth' in hint and '--public' in hint
    assert keyseg('lock', 'plain.pth', '--config', 'named.py', '--dry-run', '--public', 'plain.pth') == 0
    out = capsys.readouterr().out
    assert 'hint:' not in out and 'are close to public weights' in out


def test_kappa_is_said_where_it_is_defined():
    """Here, since transcripts of pages leave it out: see tests/support/readme.py."""
    said = _words(Agreement(0.5, 0.5, 0.25, -0.125))
    assert (
        said == 'relative error 0.50, the same class at 25.00 % of the pixels (kappa -0.12: 1 is the same, 0 is chance)'
    )
    assert _words(Agreement(0.5, 0.5, 1.0, math.nan)) == 'relative error 0.50, the same class at 100.00 % of the pixels'
