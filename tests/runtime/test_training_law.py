"""Training behind the key is the plain training in other coordinates: why protection costs no accuracy.

A keyed model's weights carry its maps from its first weights on, whatever these are: drawn, pretrained, or a plain
checkpoint's. From there on each step is that of the plain model.
"""

from __future__ import annotations

import copy
import logging
import re

import pytest
import torch
from mmseg.registry import MODELS

from keyseg_mm import detach, unlock_model
from keyseg_mm.audit.model.training import segmentation_loss
from keyseg_mm.errors import LockError, NotFiredError, PlainCheckpointError
from keyseg_mm.mm.initialising import carry_at_init
from keyseg_mm.runtime.attach import protection_of
from keyseg_mm.runtime.protection import State
from tests.support.audits import scenes, small_model_cfg
from tests.support.configs import keyed_cfg

STEPS = 12
SIGNS = 'SignedChannelPermutation'
#: Rotations mix channels, and AdamW treats each by itself: not its law, but SGD's.
CASES = {
    'stages': ({}, 'AdamW'),
    'signs': ({'transform': SIGNS}, 'AdamW'),
    'linear': ({'points': 'linear'}, 'AdamW'),
    'linear, signs': ({'points': 'linear', 'transform': SIGNS}, 'AdamW'),
    'linear, rotations': ({'points': 'linear', 'transform': 'ChannelRotation'}, 'SGD'),
    'opened': ({'points': 'linear', 'transform': SIGNS, 'runtime': 'plain'}, 'AdamW'),
}
OPTIMIZERS = {
    'AdamW': lambda p: torch.optim.AdamW(p, lr=3e-3, weight_decay=0.01),
    'SGD': lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01),
}


def begun(cfg):
    """A model with its first weights."""
    torch.manual_seed(0)  # also for what init_weights() leaves as it was built
    model = MODELS.build(cfg)
    torch.manual_seed(1)
    model.init_weights()
    return model


def train(model, optimizer='AdamW', steps=STEPS):
    """A few steps on the same pictures; their losses."""
    losses, optimizer = [], OPTIMIZERS[optimizer](model.parameters())
    model.train()
    for step in range(steps):
        photos = scenes(4, seed=step)
        images = photos.images.to(torch.get_default_dtype())
        torch.manual_seed(step)  # dropout
        loss = segmentation_loss(model, images, photos.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def logits(model):
    with torch.no_grad():
        return model.eval()(scenes(2, seed=99).images)


@pytest.fixture(scope='module')
def plain():
    """By optimizer: the plain training's losses, and what came of it."""
    found = {}
    for name in OPTIMIZERS:
        model = begun(small_model_cfg())
        losses = train(model, name)
        assert losses[-1] < losses[0] - 0.1
        found[name] = losses, model
    return found


@pytest.mark.parametrize('case', CASES)
def test_training_with_the_key_is_the_plain_training(case, plain, key_file):
    protection, optimizer = CASES[case]
    losses, trained = plain[optimizer]
    model = begun(keyed_cfg(small_model_cfg(), f'file:{key_file}', **protection))
    keyed = protection_of(model).state is State.KEYED
    assert keyed == (case != 'opened')
    start = begun(small_model_cfg())
    weights = [(p, q) for p, q in zip(model.parameters(), start.parameters()) if p.dim() > 1]
    assert any(not torch.allclose(p, q) for p, q in weights) == keyed
    assert torch.allclose(logits(model), logits(start), rtol=1e-3, atol=1e-4)

    assert train(model, optimizer) == pytest.approx(losses, rel=1e-3)
    assert torch.allclose(logits(model), logits(trained), atol=2e-2)
    stranger = copy.deepcopy(model)
    unlock_model(model)
    for (name, value), found in zip(trained.named_parameters(), model.parameters()):
        assert torch.allclose(found, value, atol=2e-3), name
    if keyed:
        detach(stranger)
        assert not torch.allclose(logits(stranger), logits(trained), atol=0.5)


@pytest.fixture
def in_float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def test_where_rounding_has_no_part_in_it_they_are_one_for_fifty_steps(in_float64, key_file):
    """In float32 the order of sums alone parts two plain trainings before that."""
    protection, optimizer = CASES['linear, signs']
    losses = train(begun(small_model_cfg()), optimizer, steps=50)
    model = begun(keyed_cfg(small_model_cfg(), f'file:{key_file}', **protection))
    assert train(model, optimizer, steps=50) == pytest.approx(losses, rel=1e-9)


def test_from_weights_that_know_nothing_of_the_maps_it_is_another_training(plain, key_file):
    losses, _ = plain['AdamW']
    model, start = MODELS.build(keyed_cfg(small_model_cfg(), f'file:{key_file}')), begun(small_model_cfg())
    with torch.no_grad():
        for p, q in zip(model.parameters(), start.parameters()):
            p.copy_(q)
    assert train(model, steps=3) != pytest.approx(losses[:3], rel=1e-3)


# ---- where first weights come from


def pretrained(tmp_path, part=''):
    """A plain checkpoint, of the whole model or of one of its parts."""
    model = begun(small_model_cfg())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    torch.save({'state_dict': model.state_dict()}, tmp_path / 'pretrained.pth')
    init = dict(type='Pretrained', checkpoint=str(tmp_path / 'pretrained.pth'))
    return model, dict(init, prefix=f'{part}.') if part else init


@pytest.mark.parametrize('part', ['', 'backbone'])
@pytest.mark.parametrize('protection', [{}, {'points': 'linear', 'transform': SIGNS}])
def test_pretrained_weights_keep_what_they_know(part, protection, key_file, tmp_path):
    model, init = pretrained(tmp_path, part)
    cfg = small_model_cfg()
    (cfg[part] if part else cfg).init_cfg = init
    plain, keyed = begun(cfg), begun(keyed_cfg(cfg, f'file:{key_file}', **protection))
    assert torch.equal(plain.backbone.conv1.weight, model.backbone.conv1.weight)
    assert torch.allclose(logits(keyed), logits(plain), rtol=1e-3, atol=1e-4)
    detach(keyed)
    assert not torch.allclose(logits(keyed), logits(plain), atol=1e-2)


@pytest.mark.parametrize('part', ['backbone', 'decode_head'])
def test_parts_that_are_protected_alone(part, key_file):
    cfg, plain = small_model_cfg(), begun(small_model_cfg())
    cfg[part] = keyed_cfg(cfg[part], f'file:{key_file}', points='linear', transform=SIGNS)
    whole = begun(cfg)
    assert torch.allclose(logits(whole), logits(plain), rtol=1e-3, atol=1e-4)
    detach(whole)
    assert not torch.allclose(logits(whole), logits(plain), atol=1e-2)


def test_a_part_with_an_init_weights_of_its_own(key_file):
    class Own(torch.nn.Module):
        def init_weights(self):
            torch.nn.init.constant_(self.weight, 2.0)

    carry_at_init(Own)
    wrapped = Own.init_weights
    carry_at_init(Own)
    assert Own.init_weights is wrapped
    own = Own()
    own.weight = torch.nn.Parameter(torch.zeros(2, 2))
    own.init_weights()
    assert own.weight.eq(2).all()


def test_initialising_twice_changes_nothing(key_file):
    model = begun(keyed_cfg(small_model_cfg(), f'file:{key_file}', points='linear'))
    before = {name: value.clone() for name, value in model.named_parameters()}
    model.init_weights()
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())


# ---- plain checkpoints to train on


def test_a_plain_checkpoint_is_refused_unless_it_is_to_be_trained_on(key_file):
    cfg, plain = keyed_cfg(small_model_cfg(), f'file:{key_file}'), begun(small_model_cfg()).state_dict()
    with pytest.raises(PlainCheckpointError, match="start='plain'"):
        begun(cfg).load_state_dict(plain)
    cfg.protection.start = 'plain'
    begun(cfg).load_state_dict(plain)


@pytest.mark.parametrize('runtime', ['keyed', 'plain'])
def test_a_plain_checkpoint_that_is_trained_on(runtime, plain, key_file):
    losses, trained = plain['AdamW']
    options = dict(points='linear', transform=SIGNS, start='plain', runtime=runtime)
    model = begun(keyed_cfg(small_model_cfg(), f'file:{key_file}', **options))
    model.load_state_dict(begun(small_model_cfg()).state_dict())
    assert train(model) == pytest.approx(losses, rel=1e-3)
    assert torch.allclose(logits(model), logits(trained), atol=2e-2)


def test_what_cannot_be_carried_is_named_where_plain_weights_have_to_be(key_file, caplog):
    cfg = small_model_cfg()
    cfg.decode_head = dict(cfg.decode_head, type='PSPHead', pool_scales=(1, 2))
    cfg.decode_head.pop('num_convs')
    cfg.decode_head.pop('concat_input')
    why = 'out:backbone:0.*adaptive_avg_pool2d'
    with pytest.raises(LockError, match=why):
        MODELS.build(keyed_cfg(cfg, f'file:{key_file}', start='plain'))
    with caplog.at_level(logging.WARNING, logger='keyseg_mm'):
        opened = begun(keyed_cfg(cfg, f'file:{key_file}', runtime='plain'))
    assert re.search(why, caplog.text)
    with pytest.raises(NotFiredError, match='no protected checkpoint'):
        logits(opened)
    begun(keyed_cfg(cfg, f'file:{key_file}'))


# ---- protected checkpoints of another model


@pytest.mark.parametrize('protection', [{'points': 'out:backbone:0'}, {'points': 'linear', 'transform': SIGNS}])
def test_a_protected_model_is_fine_tuned_to_other_classes(protection, key_file):
    """What fits is loaded with its maps; what does not keeps its first weights, and carries the same maps."""
    first = begun(keyed_cfg(small_model_cfg(), f'file:{key_file}', **protection))
    file = first.state_dict()
    other = small_model_cfg()
    other.decode_head.num_classes = 7
    model, plain = begun(keyed_cfg(other, f'file:{key_file}', salt='11' * 16, **protection)), begun(other)
    salt = protection_of(first).stamp.salt
    protection_of(model).rules = copy.copy(protection_of(first).rules)  # a salt that was only to be another one
    assert salt != protection_of(model).stamp.salt
    model.load_state_dict({n: v for n, v in file.items() if 'conv_seg' not in n}, strict=False)
    assert protection_of(model).stamp.salt == salt
    start = {n: v for n, v in begun(small_model_cfg()).state_dict().items() if 'conv_seg' not in n}
    plain.load_state_dict(start, strict=False)
    assert torch.allclose(logits(model), logits(plain), rtol=1e-3, atol=1e-4)
    assert train(model, steps=3) == pytest.approx(train(plain, steps=3), rel=1e-3)
    detach(model)
    assert not torch.allclose(logits(model), logits(plain), atol=1e-2)
