"""A model without its key, or with one that anybody can make, is tested; no route trains it or writes it."""

from __future__ import annotations

import copy

import pytest
import torch
from mmengine.runner import Runner

from keyseg_mm import SecretKey, protections, save, stamps_of, write_key_file
from keyseg_mm.errors import KeyMismatchError, NotFiredError
from keyseg_mm.keys.locator import locate
from keyseg_mm.mm.keyed import protect
from tests.support.configs import keyed_cfg, runner_cfg, tiny_model_cfg
from tests.support.runs import run


@pytest.fixture(scope='module')
def protected(tmp_path_factory, tiny_cityscapes):
    """A protected file, and a config of its model without any hook of this package."""
    folder = tmp_path_factory.mktemp('protected')
    write_key_file(folder / 'right.key', SecretKey(bytes(range(32))))
    model = keyed_cfg(tiny_model_cfg(), f'file:{folder}/right.key')
    cfg = runner_cfg(tiny_cityscapes, folder / 'work', model, 2, custom_hooks=[])
    run(cfg)
    return cfg, folder / 'work' / 'iter_2.pth'


def unauthorised(protected, key, folder, **changes):
    cfg = copy.deepcopy(protected[0])
    cfg.model.protection.key, cfg.work_dir = key, str(folder)
    cfg.merge_from_dict(changes)
    return cfg


@pytest.mark.parametrize('key', ['none', 'random:5'])
def test_no_training_by_a_runner(key, protected, tmp_path):
    for changes in ({}, {'load_from': str(protected[1])}):
        with pytest.raises(NotFiredError, match='training without the key'):
            run(unauthorised(protected, key, tmp_path, **changes))
    assert not list(tmp_path.rglob('*.pth'))


@pytest.mark.parametrize('key', ['none', 'random:5'])
def test_no_file_by_hand(key, protected, tmp_path):
    runner = Runner.from_cfg(unauthorised(protected, key, tmp_path, load_from=str(protected[1])))
    metrics = runner.test()
    assert metrics['mIoU'] >= 0 and len(protections(runner.model)) == 1
    writes = {
        'the Runner': lambda: runner.save_checkpoint(
            str(tmp_path), 'model.pth', save_optimizer=False, save_param_scheduler=False
        ),
        'save': lambda: save(runner.model, tmp_path / 'model.pth'),
        'torch.save': lambda: torch.save({'state_dict': runner.model.state_dict()}, tmp_path / 'by_torch.pth'),
    }
    for write in writes.values():
        with pytest.raises(KeyMismatchError, match='nothing is written'):
            write()
    assert not (tmp_path / 'model.pth').exists()


def test_a_model_that_is_protected_after_its_runner_was_built_is_guarded(protected, tmp_path, key_file):
    cfg = unauthorised(protected, 'none', tmp_path)
    cfg.model = tiny_model_cfg()
    runner = Runner.from_cfg(cfg)
    assert not protections(runner.model)
    protect(runner.model, locate(f'file:{key_file}'), {})
    runner.save_checkpoint(str(tmp_path), 'model.pth', save_optimizer=False, save_param_scheduler=False)
    content = torch.load(tmp_path / 'model.pth', weights_only=False)['state_dict']
    assert stamps_of(content)[''].seal is not None
