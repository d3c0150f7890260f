"""Locked checkpoints in mmseg's own ways of running: with encryptors from the stamp, and unlocked in memory."""

from __future__ import annotations

import pytest
import torch
from mmengine.config import Config
from mmseg.apis import init_model

from keyseg_mm import lock, protections, read_key_file, stamps_of, unlock
from keyseg_mm.checkpoint.files import read_checkpoint, write_checkpoint
from keyseg_mm.errors import IntegrityError, KeyMismatchError, NotFiredError, PlainCheckpointError
from keyseg_mm.mm.config import build_plain_model
from keyseg_mm.runtime.protection import State
from keyseg_mm.seal.sections import Sealing, seal_checkpoint
from keyseg_mm.stamp import is_stamp
from tests.support.configs import runner_cfg, tiny_model_cfg
from tests.support.files import opened_weights
from tests.support.runs import by_ema, by_inferencer, by_init_model, by_runner_test, by_tta, opened, predicted, run

PATHS = [by_init_model, by_inferencer, by_runner_test, by_tta, by_ema]
WAYS = {'encryptors': dict(points='checkpoint'), 'unlocked': dict(runtime='plain')}


@pytest.fixture(scope='module', params=WAYS)
def locked(request, trained, tmp_path_factory):  # noqa: F811
    """The trained model's weights, taken as those of a plain model, and locked afterwards."""
    folder = tmp_path_factory.mktemp('locked')
    cfg = Config.fromfile(str(trained['config']))
    plain = build_plain_model(cfg)
    state = {n: v for n, v in opened_weights(trained['checkpoint']).items() if not is_stamp(n)}
    key = read_key_file(trained['folder'] / 'right.key')
    write_checkpoint(folder / 'plain.pth', state, {})
    content = seal_checkpoint({'state_dict': lock(state, plain, key)}, Sealing(key))
    write_checkpoint(folder / 'locked.pth', content['state_dict'], {})
    cfg.model.protection = dict(key=f'file:{trained["folder"]}/right.key', **WAYS[request.param])
    cfg.dump(str(folder / 'config.py'))
    cfg.model = tiny_model_cfg()
    cfg.dump(str(folder / 'plain.py'))
    logits = predicted(init_model(str(folder / 'plain.py'), str(folder / 'plain.pth'), 'cpu'), trained['picture'])
    return {
        **trained,
        'keys': trained['folder'],
        'folder': folder,
        'config': folder / 'config.py',
        'logits': logits,
        'plain': state,
    }


def right(locked):
    return f'file:{locked["keys"]}/right.key'


@pytest.mark.parametrize('path', PATHS, ids=lambda p: p.__name__)
def test_right_key_gives_the_plain_result_on_each_path(path, locked):
    checkpoint = locked['folder'] / 'locked.pth'
    assert not torch.allclose(by_init_model(locked, 'none', checkpoint), locked['logits'], atol=1e-2)
    assert torch.allclose(path(locked, right(locked), checkpoint), locked['logits'], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('path', PATHS, ids=lambda p: p.__name__)
def test_errors_on_each_path(path, locked):
    with pytest.raises(KeyMismatchError, match='protected with key'):
        path(locked, f'file:{locked["keys"]}/other.key', locked['folder'] / 'locked.pth')
    with pytest.raises(PlainCheckpointError):
        path(locked, right(locked), locked['folder'] / 'plain.pth')
    altered = read_checkpoint(locked['folder'] / 'locked.pth')
    altered['state_dict']['decode_head.conv_seg.bias'] += 1
    torch.save(altered, locked['folder'] / 'altered.pth')
    with pytest.raises(IntegrityError):
        path(locked, right(locked), locked['folder'] / 'altered.pth')


def test_only_the_encryptors_of_a_model_that_was_not_unlocked_fire(locked):
    model = init_model(str(locked['config']), str(locked['folder'] / 'locked.pth'), 'cpu')
    predicted(model, locked['picture'])
    protection = protections(model)[0]
    fired = [e for e in protection.encryptors if e.calls]
    assert (protection.state is State.PLAIN) != bool(fired)
    assert len(fired) == sum('test' in e.site.runs for e in protection.encryptors)


def test_training_goes_on_and_what_it_writes_is_sealed(locked, tmp_path):
    """Opened too, its files carry the maps of the one that it was loaded from."""
    cfg = opened(locked['config'], locked['folder'] / 'locked.pth', right(locked))
    cfg.work_dir = str(tmp_path / 'work')
    cfg.custom_hooks = [dict(type='keyseg_mm.GuardHook')]
    run(cfg, 'train')
    state = opened_weights(next((tmp_path / 'work').glob('iter_*.pth')))
    before = opened_weights(locked['folder'] / 'locked.pth')
    assert stamps_of(state)[''].entries == stamps_of(before)[''].entries
    assert not torch.equal(state['backbone.conv1.weight'], before['backbone.conv1.weight']), 'it was trained'
    plain = unlock(state, read_key_file(locked['keys'] / 'right.key'))  # the stamp still knows the weights
    wide = 'decode_head.conv_seg.weight'
    assert not torch.equal(plain[wide], state[wide])
    assert torch.cosine_similarity(plain[wide].flatten(), locked['plain'][wide].flatten(), dim=0) > 0.9


def test_the_guard_stops_a_run_that_loaded_nothing(locked, tiny_cityscapes, tmp_path):
    cfg = Config.fromfile(str(locked['config']))
    cfg = runner_cfg(tiny_cityscapes, tmp_path / 'work', cfg.model, iterations=1)
    cfg.custom_hooks = [dict(type='keyseg_mm.GuardHook')]
    if cfg.model.protection.get('runtime'):  # opened, a training begins from its own plan
        run(cfg, 'train')
        assert stamps_of(opened_weights(tmp_path / 'work' / 'iter_1.pth'))[''].is_carried
        return
    with pytest.raises(NotFiredError, match='no protected checkpoint was loaded'):
        run(cfg, 'train')
