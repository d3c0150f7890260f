"""Before a training its points are proved to protect something, and after it its last file."""

from __future__ import annotations

import pytest
import torch
from mmseg.models import EncoderDecoder
from mmseg.registry import MODELS
from torch import nn

from keyseg_mm import protections, save
from keyseg_mm.errors import KeysegError, NotFiredError
from keyseg_mm.mm.effects import effects_in
from keyseg_mm.mm.proving import prove_file, prove_points
from tests.support.configs import keyed_cfg, runner_cfg, tiny_model_cfg
from tests.support.families import small_model
from tests.support.runs import run


def build(key_file, points, **changes):
    torch.manual_seed(0)
    model = MODELS.build(keyed_cfg(dict(tiny_model_cfg(), **changes), f'file:{key_file}', points=points))
    model.init_weights()
    return model


READ, AUX = 'out:backbone:3', 'in:auxiliary_head.conv_seg'
#: What has no effect, and whether that is an error or is said.
POINTS = {
    'stages': (['out:backbone:2'], False),  # maps that nobody reads are left out
    'linear': (['in:auxiliary_head.convs.0.conv', AUX], False),
    READ: ([], False),
    'out:backbone:0': (['out:backbone:0'], True),
    f'{READ} {AUX}': ([AUX], True),
    f'stages {AUX}': (['out:backbone:2', AUX], True),
}


@pytest.mark.parametrize('points', POINTS)
def test_points_that_change_nothing_are_named(points, key_file):
    idle, is_error = POINTS[points]
    model = build(key_file, points.split())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert sorted(effects_in(model).idle) == sorted(idle)
    if is_error:
        with pytest.raises(NotFiredError, match=f'^{idle[-1]}: what the model predicts is the same'):
            prove_points(model)
    else:
        assert bool(prove_points(model)) == bool(idle) and all(point in prove_points(model) for point in idle)
    after = model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert not any(p.grad is not None for p in model.parameters())


def test_what_is_idle_in_a_small_picture_alone_is_not(key_file):
    """ISANet attends within blocks, and at a small size a block is one place."""
    model = MODELS.build(keyed_cfg(small_model('isanet'), f'file:{key_file}', points='linear'))
    model.init_weights()
    assert set(effects_in(model).idle) == {'in:auxiliary_head.convs.0.conv', 'in:auxiliary_head.conv_seg'}


@MODELS.register_module(force=True)
class BypassesWhenTested(EncoderDecoder):
    """Reads its classifier's weight by hand in testing."""

    def encode_decode(self, inputs, batch_img_metas):
        if self.training:
            return super().encode_decode(inputs, batch_img_metas)
        head = self.decode_head
        features = head._forward_feature(self.extract_feat(inputs))
        return nn.functional.conv2d(features, head.conv_seg.weight, head.conv_seg.bias)


def test_a_test_path_that_passes_a_layer_by_is_an_error(key_file):
    model = build(key_file, ['in:decode_head.conv_seg', READ], type='BypassesWhenTested')
    assert effects_in(model).bypassed == ('in:decode_head.conv_seg',)
    with pytest.raises(NotFiredError, match='in:decode_head.conv_seg'):
        prove_points(model)


@MODELS.register_module(force=True)
class Stubborn(EncoderDecoder):
    """Lets no gradient through, and has its last map read by what no order of channels changes."""

    def extract_feat(self, inputs):
        found = list(super().extract_feat(inputs))
        found[0] = found[0].detach()
        found[3] = found[3] + found[1].detach().mean() + found[2].mean((1, 2, 3), keepdim=True)
        return found


def test_maps_behind_no_gradient_are_tried(key_file):
    model = build(key_file, 'stages', type='Stubborn')
    model.decode_head.in_index = 0
    model.decode_head.convs[0].conv = nn.Conv2d(8, 16, 3, padding=1, bias=False)
    assert effects_in(model).idle == ('out:backbone:1', 'out:backbone:2', 'out:backbone:3')
    model.decode_head.in_index = 3
    model.decode_head.convs[0].conv = nn.Conv2d(64, 16, 3, padding=1, bias=False)
    assert effects_in(model).idle == ('out:backbone:0', 'out:backbone:1', 'out:backbone:2')


def test_branches_that_begin_as_zeros_take_part(key_file):
    model = build(key_file, 'in:backbone.layer4.1.conv2')
    nn.init.zeros_(model.backbone.layer4[1].bn2.weight)
    assert effects_in(model).idle == ()
    assert not model.backbone.layer4[1].bn2.weight.any()


def test_a_training_that_would_protect_nothing_does_not_begin(tiny_cityscapes, tmp_path, key_file):
    model = keyed_cfg(tiny_model_cfg(), f'file:{key_file}', points='out:backbone:0')
    with pytest.raises(NotFiredError, match='out:backbone:0'):
        run(runner_cfg(tiny_cityscapes, tmp_path / 'work', model, 2, custom_hooks=[]))
    assert not list((tmp_path / 'work').rglob('*.pth'))


def test_the_last_file_of_a_training_is_proved(tiny_cityscapes, tmp_path, key_file, monkeypatch):
    proved = []

    def prove(*args):
        proved.append((args, prove_file(*args)))
        return proved[0][1]

    monkeypatch.setattr('keyseg_mm.mm.hooks.prove_file', prove)
    model = keyed_cfg(tiny_model_cfg(), f'file:{key_file}', points='linear', transform='SignedChannelPermutation')
    runner, _ = run(runner_cfg(tiny_cityscapes, tmp_path / 'work', model, 2))
    ((args, words),) = proved
    assert args[1].endswith('iter_2.pth') and args[2] == 2 and protections(args[0])
    other = build(key_file, 'linear')
    with pytest.raises(KeysegError):
        prove_file(other, args[1], 2)  # of another transform
    nn.init.normal_(runner.model.decode_head.conv_seg.weight)
    with pytest.raises(NotFiredError, match='not the model that was trained'):
        prove_file(runner.model, args[1], 2)
    assert prove_file(runner.model, args[1], 3) == words


def test_a_file_whose_maps_protect_nothing_is_found(tmp_path, key_file):
    model = build(key_file, 'out:backbone:0')
    save(model, tmp_path / 'model.pth')
    with pytest.raises(NotFiredError, match='the same without its encryptors'):
        prove_file(model, str(tmp_path / 'model.pth'), 0)
    model = build(key_file, 'stages')
    save(model, tmp_path / 'other.pth')
    prove_file(model, str(tmp_path / 'other.pth'), 0)
