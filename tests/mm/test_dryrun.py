"""What a dry run decides, and what it leaves to the host: sizes, losses, where channels are, weights as they are."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from mmengine.model import BaseModel
from mmseg.models.decode_heads import FCNHead
from mmseg.registry import MODELS
from torch import nn

from keyseg_mm import plan_lock
from keyseg_mm.errors import LockError, PointError
from keyseg_mm.mm import dryrun
from keyseg_mm.mm.bench import pictures, run_passes
from keyseg_mm.mm.dryrun import trace_module
from keyseg_mm.mm.sizes import sizes_for
from keyseg_mm.model.sites import resolve
from tests.support.configs import keyed_cfg, normed_model, tiny_model_cfg
from tests.support.proofs import prove

SALT = bytes(range(16))


class Fixed(nn.Module):
    """A backbone with a position table, as BEiT's, that fits images of one size only."""

    def __init__(self, img_size):
        super().__init__()
        self.img_size, self.patches = img_size, nn.Conv2d(3, 8, 16, 16)
        self.table = nn.Parameter(torch.zeros(1, 8, img_size[0] // 16, img_size[1] // 16))

    def forward(self, x):
        return [self.patches(x) + self.table]


class Rows(nn.Module):
    """A backbone that hands out its maps with the channels last."""

    def __init__(self, last=True):
        super().__init__()
        self.a, self.b, self.last = nn.Conv2d(3, 16, 3, 4, 1), nn.Conv2d(16, 16, 3, 4, 1), last

    def forward(self, x):
        maps = [self.a(x), self.b(self.a(x).relu())]
        return [x.permute(0, 2, 3, 1) for x in maps] if self.last else maps


class FromRows(FCNHead):
    def _transform_inputs(self, inputs):
        return inputs[-1].permute(0, 3, 1, 2)


for kind in (Fixed, Rows, FromRows):
    MODELS.register_module(module=kind, force=True)


def small_cfg(backbone, channels, head='FCNHead', **head_cfg):
    cfg = tiny_model_cfg(aux=False)
    cfg.backbone = backbone
    cfg.decode_head.update(type=head, in_channels=channels, in_index=-1, **head_cfg)
    return cfg


_NORM = dict(norm_cfg=dict(type='BN'))
_HEAD = dict(num_classes=5, channels=8, **_NORM)
_ALONE = {
    'class tokens': dict(**_HEAD, type='DPTHead', in_channels=(8,) * 4, embed_dims=8, post_process_channels=[8] * 4)
    | dict(readout_type='project', input_transform='multiple_select', in_index=(0, 1, 2, 3)),
    'after another head': dict(
        **_HEAD, type='OCRHead', in_channels=[8, 16], ocr_channels=8, input_transform='resize_concat', in_index=(0, 1)
    ),
    'of one size': dict(type='MLANeck', in_channels=[8] * 4, out_channels=8, act_cfg=dict(type='ReLU'), **_NORM),
    'a map itself': dict(**_HEAD, type='DDRHead', in_channels=8),
}


@pytest.mark.parametrize('form', _ALONE)
def test_parts_alone_are_run_with_the_maps_that_they_take(form):
    trace = trace_module(MODELS.build(_ALONE[form]))
    fired = {point.name for point in trace.sites if point.side == 'in'}
    assert any('conv' in name for name in fired), fired


@pytest.mark.parametrize('size', [(96, 96), (480, 480), (80, 176), (1024, 32)])
def test_a_model_runs_at_the_size_that_it_was_made_for(size):
    """The tiny model's data preprocessor says 64."""
    model = MODELS.build(small_cfg(dict(type='Fixed', img_size=size), 8))
    trace = trace_module(model)
    (site,) = resolve('stages', model, trace)
    assert site.shape == (1, 8, size[0] // 16, size[1] // 16)
    assert [entry.point for entry in plan_lock(model, trace=trace).maps][0] == 'in:backbone.patches'


def test_sizes_are_told_by_preprocessor_windows_parts_and_config():
    model = MODELS.build(small_cfg(dict(type='Fixed', img_size=(32, 48)), 8))
    model.data_preprocessor.size, model.test_cfg = (72, 80), dict(crop_size=(96, 112))
    model.cfg = dict(crop_size=120, test_pipeline=[dict(type='Resize', scale=(256, 128))])
    own, others = sizes_for(model)
    assert own == [(64, 64), (72, 80), (96, 112), (32, 48), (120, 120), (128, 256)]
    assert (64, 64) not in others and (128, 128) in others


def test_the_error_is_that_of_the_size_that_should_have_worked():
    cfg = small_cfg(dict(type='Fixed', img_size=(96, 96)), 8)
    cfg.decode_head.in_channels = 4  # which it does not get, at any size
    with pytest.raises(PointError, match='at 96x96, the size it was made for.*to have 4 channels, but got 8 channels'):
        trace_module(MODELS.build(cfg))


class Broken(nn.Module):
    """A loss that fails, as the host's focal loss does on a CPU."""

    loss_name = 'loss_broken'

    def forward(self, *args, **kwargs):
        raise RuntimeError('no flux capacitor')


MODELS.register_module(module=Broken, force=True)


def test_a_loss_that_does_not_run_is_left_out_and_said(caplog, key):
    good = trace_module(MODELS.build(tiny_model_cfg()))
    cfg = tiny_model_cfg()
    cfg.decode_head.loss_decode = dict(type='Broken')
    model = MODELS.build(cfg)
    model.load_state_dict(normed_model().state_dict())
    dryrun._say.cache_clear()
    with caplog.at_level(logging.WARNING, 'keyseg_mm'):
        trace = trace_module(model)
    assert 'no flux capacitor' in caplog.text and 'testing alone' in caplog.text
    assert trace.sites == good.sites  # the auxiliary head's too, which fire in training only
    proof = prove(model, model.state_dict(), plan_lock(model, trace=trace), key, SALT)
    assert proof.with_key.is_equal and proof.with_key.error < 1e-5 and proof.with_key.loss_error != 0
    assert proof.without['without it'].error > 0.1


class Directions(FCNHead):
    """A head that takes the direction of a parameter, as a text encoder's projection is taken; filled later."""

    def __init__(self, empty=0.0, **kwargs):
        super().__init__(**kwargs)
        self.projection = nn.Parameter(torch.full((5, 5), empty))

    def cls_seg(self, feat):
        found = super().cls_seg(feat)
        one = self.projection / self.projection.norm(dim=-1, keepdim=True)
        assert one.isfinite().all(), 'no direction'
        return torch.einsum('bchw,kc->bkhw', found, one)


MODELS.register_module(module=Directions, force=True)


@pytest.mark.parametrize('empty', [0.0, float('nan'), float('inf')])
def test_weights_that_nobody_has_filled_yet_do_not_spoil_the_losses(empty, caplog):
    cfg = tiny_model_cfg(5)
    cfg.decode_head.update(type='Directions', empty=empty)
    model = MODELS.build(cfg)
    with pytest.raises(AssertionError, match='no direction'):
        model.decode_head.cls_seg(torch.rand(1, cfg.decode_head.channels, 4, 4))
    dryrun._say.cache_clear()
    with caplog.at_level(logging.WARNING, 'keyseg_mm'):
        trace = trace_module(model)
    assert not caplog.text
    assert trace.sites == trace_module(MODELS.build(tiny_model_cfg(5))).sites
    assert model.decode_head.projection[0, 0].isnan() if empty != empty else model.decode_head.projection[0, 0] == empty


class Jumpy(FCNHead):
    """A head that says beside its losses what rounding alone changes, as a share of right pixels may be."""

    def loss_by_feat(self, seg_logits, batch_data_samples):
        return {**super().loss_by_feat(seg_logits, batch_data_samples), 'acc_seg': seg_logits.double().sum() * 1e7 % 1}


MODELS.register_module(module=Jumpy, force=True)


def test_what_stands_beside_the_losses_proves_nothing(key, monkeypatch):
    cfg = tiny_model_cfg()
    cfg.decode_head.type = 'Jumpy'
    model = MODELS.build(cfg)
    model.load_state_dict(normed_model().state_dict())
    trace = trace_module(model)
    found = dryrun.watch_module(model, lambda double, passes: run_passes(passes, ['train']), image=pictures, real=True)
    assert len(found) == 2 and all('loss' in name for name in found)
    plan = plan_lock(model, trace=trace)
    proof = prove(model, model.state_dict(), plan, key, SALT)
    assert proof.with_key.loss_error < 1e-5 and proof.plan.entries == plan.entries
    monkeypatch.setattr(dryrun, '_summed', lambda losses: losses)
    with pytest.raises(LockError, match='nothing would be protected'):  # all points are left out then
        prove(model, model.state_dict(), plan, key, SALT)


class Whole(BaseModel):
    """A user's own model of another task, which takes images alone and says more than one thing of them."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 4, 1)

    def forward(self, images):
        return {'expected_loss': images.mean(), 'scores': self.head(self.body(images).relu())}


def test_all_that_a_model_gives_in_testing_is_summed(key):
    torch.manual_seed(0)
    model = Whole()
    found = dryrun.watch_module(model, lambda double, passes: run_passes(passes), image=pictures, real=True)
    assert list(found) == [f'{run} .{name}[0]' for run in ('test', 'train') for name in ('expected_loss', 'scores')]
    plan = plan_lock(model)
    assert [entry.point for entry in plan.maps] == ['in:body', 'in:head']
    proof = prove(model, model.state_dict(), plan, key, SALT)
    assert proof.with_key.error < 1e-5 and proof.without['without it'].error > 0.1


def test_one_class_and_two_are_trained_with():
    good = trace_module(MODELS.build(tiny_model_cfg()))
    for classes in (1, 2):
        assert trace_module(MODELS.build(tiny_model_cfg(classes))).sites.keys() == good.sites.keys()


@pytest.mark.parametrize('last', [True, False])
def test_channels_are_what_stays_where_the_size_changes(last, key_file):
    cfg = small_cfg(dict(type='Rows', last=last), 16, 'FromRows' if last else 'FCNHead')
    model = MODELS.build(keyed_cfg(cfg, f'file:{key_file}')).eval()
    plain = MODELS.build(cfg).eval()
    plain.load_state_dict(model.state_dict(), strict=False)
    found = resolve('stages', plain, trace_module(plain))
    assert [(site.channels, site.dim) for site in found] == [(16, -1 if last else 1)] * 2
    x = torch.rand(1, 3, 96, 64)
    ours, theirs = model.extract_feat(x), plain.extract_feat(x)
    assert not all(torch.equal(a, b) for a, b in zip(ours, theirs))
    for a, b in zip(ours, theirs):
        axis = a.dim() - 1 if last else 1
        assert torch.equal(a.sort(axis).values, b.sort(axis).values)


@pytest.mark.parametrize('value', [float('nan'), float('inf'), 1e5])
def test_the_proof_is_of_the_weights_as_they_are(value, key):
    """One odd number in the head: what it makes of the outputs is the same with the key, or nothing can be said."""
    model = normed_model()
    plan = plan_lock(model)
    with torch.no_grad():
        model.decode_head.conv_seg.bias[18] = value if value != 1e5 else 0  # it would hide all else in the output
        model.auxiliary_head.conv_seg.weight[0, 0] = value
    before = copy.deepcopy(model.state_dict())
    proof = prove(model, model.state_dict(), plan, key, SALT)
    assert proof.with_key.is_equal and proof.without['without it'].error > 0.1
    assert all(torch.equal(a, b) or a.isnan().any() for a, b in zip(before.values(), model.state_dict().values()))
    if value != 1e5:
        model.decode_head.convs[0].conv.weight.data[:] = value
        with pytest.raises(LockError, match='no finite number.*NaN'):
            prove(model, model.state_dict(), plan, key, SALT)
