"""A training that began from plain weights says at its end what is still close to them."""

from __future__ import annotations

import re

import pytest
import torch
from mmseg.registry import MODELS

from keyseg_mm import save
from keyseg_mm.mm.beginning import Beginning
from tests.support.configs import keyed_cfg, runner_cfg, tiny_model_cfg
from tests.support.runs import run

SIGNS = dict(points='linear', transform='SignedChannelPermutation')


def begun(key_file, **protection):
    model = MODELS.build(keyed_cfg(tiny_model_cfg(), f'file:{key_file}', **protection))
    model.init_weights()
    return model


@pytest.mark.parametrize('runtime', ['keyed', 'plain'])
def test_distances_are_those_of_the_whole_weights(runtime, key_file):
    model = begun(key_file, runtime=runtime, **SIGNS)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    beginning = Beginning(model, before)
    assert set(beginning.distances(model).values()) == {0.0}
    torch.manual_seed(0)
    with torch.no_grad():
        for index, parameter in enumerate(model.parameters()):
            parameter.add_(parameter.std() * torch.randn_like(parameter) * 0.1 * (index % 20))
    found, now = beginning.distances(model), dict(model.named_parameters())
    assert len(found) > 20
    for name, distance in found.items():
        exact = float((now[name] - before[name]).norm() / before[name].norm())
        assert distance == pytest.approx(exact, rel=0.1), name
    close = sum(distance < 1 for distance in found.values())
    assert 0 < close < len(found)
    assert beginning.words(model).startswith(f'{close} of {len(found)} weights that carry maps')


def test_nothing_is_said_where_nothing_is_close(key_file):
    model = begun(key_file, **SIGNS)
    beginning = Beginning(model, dict(model.named_parameters()))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(-0.5)
    assert beginning.words(model) == ''


# ---- runs


@pytest.fixture(scope='module')
def plain_file(tmp_path_factory):
    """A plain checkpoint that anybody may have."""
    torch.manual_seed(0)
    model = MODELS.build(tiny_model_cfg())
    model.init_weights()
    path = tmp_path_factory.mktemp('public') / 'plain.pth'
    torch.save({'state_dict': model.state_dict(), 'meta': {}}, path)
    return str(path)


def begin_with(cfg, start, plain_file):
    if start == 'load_from':
        cfg.load_from = plain_file
        cfg.model.protection.start = 'plain'
    if start == 'init_cfg':
        cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=plain_file, prefix='backbone.')


@pytest.mark.parametrize('start', ['load_from', 'init_cfg', 'random'])
def test_a_run_says_what_is_still_close_to_the_weights_it_began_with(
    start, plain_file, key_file, tiny_cityscapes, tmp_path
):
    cfg = runner_cfg(tiny_cityscapes, tmp_path, keyed_cfg(tiny_model_cfg(aux=False), f'file:{key_file}', **SIGNS), 2)
    begin_with(cfg, start, plain_file)
    cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=2)
    run(cfg)
    log = next(tmp_path.glob('*/*.log')).read_text()
    said = re.findall(r'(\d+) of (\d+) weights that carry maps, .* are still close to the plain ones', log)
    count = {'load_from': 22, 'init_cfg': 20, 'random': 0}[start]  # the head's two are drawn, or nothing was read
    assert said == [(str(count), str(count))] * (count > 0)
    assert (tmp_path / 'iter_2.pth').exists()


def test_a_training_that_goes_on_from_a_protected_file_began_with_nothing_public(
    plain_file, key_file, tiny_cityscapes, tmp_path
):
    model = begun(key_file, **SIGNS)
    save(model, tmp_path / 'protected.pth')
    cfg = runner_cfg(tiny_cityscapes, tmp_path, keyed_cfg(tiny_model_cfg(), f'file:{key_file}', **SIGNS), 2)
    begin_with(cfg, 'init_cfg', plain_file)
    cfg.load_from = str(tmp_path / 'protected.pth')
    run(cfg)
    assert 'are still close' not in next(tmp_path.glob('*/*.log')).read_text()
