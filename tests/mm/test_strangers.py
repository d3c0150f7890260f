"""What a model is worth to strangers while it is trained: figures, curves and pictures."""

from __future__ import annotations

import json

import pytest
import torch
from mmseg.registry import MODELS

from keyseg_mm import detach
from keyseg_mm.keys.key import wrong_key
from keyseg_mm.runtime.strangers import seen_by
from tests.support.audits import small_model_cfg
from tests.support.configs import keyed_cfg
from tests.support.runs import keyed_run, run

SIGNS = dict(points='linear', transform='SignedChannelPermutation')


def begun(**protection):
    torch.manual_seed(0)
    cfg = small_model_cfg()
    model = MODELS.build(keyed_cfg(cfg, **protection) if protection else cfg)
    torch.manual_seed(1)
    model.init_weights()
    return model.eval()


def logits(model, image):
    with torch.no_grad():
        return model(image)


@pytest.mark.parametrize('runtime', ['keyed', 'plain'])
@pytest.mark.parametrize('transform', ['SignedChannelPermutation', 'ChannelRotation'])
def test_a_model_is_seen_as_strangers_see_its_file(runtime, transform, key_file, image):
    protection = dict(points='linear', transform=transform, salt='22' * 16)
    model = begun(locator=f'file:{key_file}', runtime=runtime, **protection)
    state, right = {n: p.clone() for n, p in model.named_parameters()}, logits(model, image)
    stripped = begun(locator=f'file:{key_file}', **protection)
    detach(stripped)
    with seen_by(model, None):
        assert torch.allclose(logits(model, image), logits(stripped, image), atol=1e-5)
        assert not torch.allclose(logits(model, image), right, atol=1e-2)
    with seen_by(model, wrong_key('1')):
        wrong = logits(model, image)
        assert not torch.allclose(wrong, right, atol=1e-2)
        assert not torch.allclose(wrong, logits(stripped, image), atol=1e-2)
    assert torch.equal(logits(model, image), right)
    assert all(torch.equal(p, state[n]) for n, p in model.named_parameters())


def test_an_error_within_leaves_it_as_it_was(key_file, image):
    model = begun(locator=f'file:{key_file}', **SIGNS)
    right = logits(model, image)
    with pytest.raises(ZeroDivisionError), seen_by(model, None):
        raise ZeroDivisionError
    assert torch.equal(logits(model, image), right)


def test_validations_of_strangers_are_drawn_beside_the_right_ones(tmp_path, tiny_cityscapes, key_file):
    cfg = keyed_run(tiny_cityscapes, tmp_path, f'file:{key_file}', 2)
    cfg.model.protection.update(SIGNS)
    cfg.custom_hooks = [dict(type='keyseg_mm.GuardHook', strangers=True), dict(type='EMAHook')]
    runner, _ = run(cfg)
    rows = [json.loads(line) for path in tmp_path.glob('*/vis_data/*.json') for line in path.read_text().splitlines()]
    found = {name: value for row in rows for name, value in row.items() if 'mIoU' in name}
    assert set(found) == {
        'mIoU',
        'mIoU without the key',
        'mIoU with a wrong key',
        'mIoU of a constant prediction',
    }
    assert all(0 <= value <= 100 for value in found.values())
    pictures = {path.name.rpartition('_')[0] for path in tmp_path.glob('*/vis_data/vis_image/*.png')}
    assert pictures == {'val without the key', 'val with a wrong key'}
    (log,) = tmp_path.glob('*/*.log')
    assert ' with the key, without the key ' in log.read_text()
