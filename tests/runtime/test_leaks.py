"""Every planted form of a secret is found, and the guard stops a run that would write one."""

from __future__ import annotations

import pytest
import torch
import torch._dynamo
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch._dynamo.utils import counters

from keyseg_mm import Stamp, detach, find_leaks, protections
from keyseg_mm.bind import derive_map
from keyseg_mm.errors import LeakError, NotFiredError
from keyseg_mm.runtime.gates import remove_gates
from keyseg_mm.stamp import MapEntry
from tests.support.configs import keyed_cfg, runner_cfg, tiny_model_cfg


@pytest.fixture
def protection(key_file):
    from mmseg.registry import MODELS as MMSEG

    return protections(MMSEG.build(keyed_cfg(tiny_model_cfg(), f'file:{key_file}', points=['out:backbone:3'])))[0]


def test_signs_are_looked_for_where_chance_does_not_give_them(key, tmp_path):
    """Eight signs are all +1 for one salt in 256, and a fresh batch norm's weights are as well."""

    def plan(channels):
        spec = {'type': 'SignedChannelPermutation'}
        salts = (index.to_bytes(16, 'big') for index in range(4000))
        return next(
            p for s in salts for p in [Stamp(key.id, s, (MapEntry('in:x', channels, spec),))] if fits(p, channels)
        )

    def fits(found, channels):
        return channels > 8 or signs_of(found).sum() == channels

    def signs_of(found):
        return derive_map(key, found.salt, found.entries[0]).tables()['signs']

    path = tmp_path / 'norm.bin'
    few, many = plan(8), plan(64)
    path.write_bytes(torch.ones(8).numpy().tobytes())
    assert find_leaks(path, key, [few]) == []
    path.write_bytes(signs_of(many).astype('<f4').tobytes())
    assert [leak.what for leak in find_leaks(path, key, [many])] == ['the signs at in:x (numpy <f4)']


@pytest.mark.parametrize('channels', [11, 12, 16, 23])
def test_short_tables_are_looked_for_in_numbers_of_all_widths(channels, key, tmp_path):
    stamp = Stamp(key.id, bytes(range(16)), (MapEntry('in:x', channels, {'type': 'ChannelPermutation'}),))
    table = derive_map(key, stamp.salt, stamp.entries[0]).tables()['permutation']
    path, others = tmp_path / 'table.bin', bytes(range(100, 117))
    for dtype in ('<i2', '<i4', '<i8', '>i2', '>i4', '>i8', '<f2', '<f4', '<f8'):
        path.write_bytes(others + table[::-1].astype(dtype).tobytes() + others)
        assert find_leaks(path, key, [stamp]) == []
        path.write_bytes(others + table.astype(dtype).tobytes() + others)
        assert bool(find_leaks(path, key, [stamp])) == (channels >= 12), dtype


@HOOKS.register_module(force=True)
class CarelessHook(Hook):
    """Puts a table into the checkpoint."""

    def before_save_checkpoint(self, runner, checkpoint):
        checkpoint['message_hub'] = {
            'note': protections(runner.model)[0].encryptors[-1].map.tables()['permutation'].tolist()
        }


@HOOKS.register_module(force=True)
class StampEaterHook(Hook):
    """Drops the stamp."""

    def before_save_checkpoint(self, runner, checkpoint):
        for name in [n for n in checkpoint['state_dict'] if 'keyseg_stamp' in n]:
            del checkpoint['state_dict'][name]


@HOOKS.register_module(force=True)
class DetachHook(Hook):
    """Takes the encryptors off in the middle of a run."""

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        for module in runner.model.modules():
            remove_gates(module)


def guarded(data, work_dir, key_file, *hooks, model=None):
    cfg = runner_cfg(data, work_dir, model or keyed_cfg(tiny_model_cfg(), f'file:{key_file}'), 2)
    cfg.custom_hooks = [*(dict(type=h) for h in hooks), dict(type='keyseg_mm.GuardHook')]
    return Runner.from_cfg(cfg)


@pytest.mark.parametrize(
    ('hook', 'error', 'words'),
    [
        ('CarelessHook', LeakError, 'permutation at out:backbone'),
        ('StampEaterHook', LeakError, 'lacks the stamp'),
        ('DetachHook', NotFiredError, 'out:backbone:2'),
    ],
)
def test_guard_stops_bad_runs(hook, error, words, tiny_cityscapes, tmp_path, key_file):
    with pytest.raises(error, match=words):
        guarded(tiny_cityscapes, tmp_path / 'work', key_file, hook).train()
    assert not list((tmp_path / 'work').glob('*.pth'))


def test_a_stopped_run_leaves_the_compiler_as_it_was(tiny_cityscapes, tmp_path, key_file):
    torch._dynamo.reset()
    with pytest.raises(LeakError):
        guarded(tiny_cityscapes, tmp_path / 'work', key_file, 'CarelessHook').train()
    counters.clear()
    torch.compile(lambda x: x + 1, backend='eager')(torch.ones(1))
    assert counters['stats']['unique_graphs'] == 1


def test_guard_wants_a_protection(tiny_cityscapes, tmp_path, key_file):
    with pytest.raises(NotFiredError, match='keyseg_mm.Keyed'):
        guarded(tiny_cityscapes, tmp_path / 'work', key_file, model=tiny_model_cfg()).train()


def test_guard_finds_a_secret_in_the_config(tiny_cityscapes, tmp_path, key_file, key):
    runner = guarded(tiny_cityscapes, tmp_path / 'work', key_file)
    runner.cfg.note = 'remember: ' + key.to_text()
    with pytest.raises(LeakError, match='the config') as caught:
        runner.train()
    assert key.to_text() not in str(caught.value)


def test_guard_lets_a_good_run_pass_and_detach_is_seen(tiny_cityscapes, tmp_path, key_file):
    runner = guarded(tiny_cityscapes, tmp_path / 'work', key_file)
    runner.train()
    assert (tmp_path / 'work' / 'iter_2.pth').exists()
    (log,) = (tmp_path / 'work').glob('*/*.log')
    assert log.read_text().count('labelled photos') == 1  # that a few maps do not keep out whoever has some
    assert detach(runner.model) == 2 + 1
