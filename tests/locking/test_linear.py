"""What is locked from Python is exact, or refused: layers that only look linear, and weights that others read."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from mmseg.models.decode_heads import FCNHead
from mmseg.registry import MODELS
from torch import nn

from keyseg_mm import Trace, attach, lock, plan_lock, stamps_of
from keyseg_mm.errors import LockError
from keyseg_mm.locking.places import sites_of_stamp
from keyseg_mm.maps import CHANNEL_MAPS
from keyseg_mm.mm.inputs import data_samples
from keyseg_mm.model.layers import is_stock
from keyseg_mm.runtime.attach import protection_of
from tests.support.configs import keyed_cfg, tiny_model_cfg

SALT = bytes(range(16))
SIGNED = 'SignedChannelPermutation'


class Standardised(nn.Conv2d):
    def forward(self, x):
        w = self.weight
        variance, mean = torch.var_mean(w, dim=[1, 2, 3], keepdim=True, unbiased=False)
        return F.conv2d(x, (w - mean) / torch.sqrt(variance + 1e-10), self.bias)


class Partial(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) * (0.5 + (x.sum(1, keepdim=True) > 0).float().mean((2, 3), keepdim=True))


class Gated(nn.Linear):
    def forward(self, x):
        return super().forward(x * x.sigmoid())


class First(nn.Conv2d):
    """Treats one channel otherwise than the rest: no map of its input can be absorbed."""

    def forward(self, x):
        return super().forward(torch.cat([x[:, :1].abs(), x[:, 1:]], 1))


class Cumulated(nn.Linear):
    def forward(self, x):
        return super().forward(x.cumsum(-1))


class Equalised(nn.Conv2d):
    """Scales its weight as it is used: linear after all."""

    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, weight * 0.3, bias)


class Padded(nn.Conv2d):
    def forward(self, x):
        return super().forward(F.pad(x, (0, 1, 0, 1)))


class Conv2d(nn.Conv2d):
    """As implementations of weight standardisation call it."""

    forward = Standardised.forward


class Renamed(nn.Linear):
    """Computes what it derives from."""


ALL, PERMUTATIONS, NONE = list(CHANNEL_MAPS), ['ChannelPermutation'], []
LAYERS = {
    Standardised: PERMUTATIONS,
    Partial: PERMUTATIONS,
    Gated: PERMUTATIONS,
    Conv2d: PERMUTATIONS,
    First: NONE,
    Cumulated: NONE,
    Equalised: ALL,
    Padded: ALL,
    Renamed: ALL,
}


def made(kind):
    """Two layers, of which the second is of the kind; an image for them; and what runs them."""
    torch.manual_seed(0)
    if issubclass(kind, nn.Conv2d):
        model, x = nn.Sequential(nn.Conv2d(3, 8, 3), kind(8, 6, 2)), torch.randn(2, 3, 9, 9)
    else:
        model, x = nn.Sequential(nn.Linear(3, 8), kind(8, 6)), torch.randn(2, 5, 3)
    return model.eval(), x, Trace.of(model, {'test': lambda: model(x)})


def run(model, locked, x, key=None):
    """The model with other weights, with their encryptors where a key is given."""
    model, stamp = copy.deepcopy(model), stamps_of(locked)['']
    model.load_state_dict({name: locked[name] for name in model.state_dict()})
    if key:
        attach(model, key, sites_of_stamp(model, stamp), stamp.entries, salt=stamp.salt)
    with torch.no_grad():
        return model(x)


def gap(a, b):
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize('transform', CHANNEL_MAPS)
@pytest.mark.parametrize('kind', LAYERS, ids=lambda kind: kind.__name__)
def test_a_layer_is_locked_as_far_as_it_is_linear(kind, transform, key):
    model, x, trace = made(kind)
    before, expected = copy.deepcopy(model.state_dict()), model(x).detach()
    locked = lock(model.state_dict(), model, key, transform=transform, salt=SALT, trace=trace)
    assert gap(run(model, locked, x), expected) > 0.1
    assert gap(run(model, locked, x, key), expected) < 1e-5
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    found = {entry.point: entry.transform['type'] for entry in stamps_of(locked)[''].maps}
    absorbs = LAYERS[kind]
    expected_kind = transform if transform in absorbs else 'ChannelPermutation' if absorbs else None
    assert (found['in:0'], found.get('in:1')) == (transform, expected_kind)
    if transform not in absorbs:
        with pytest.raises(LockError, match=f'in:1: a {kind.__name__} computes otherwise than the .* it is made of'):
            plan_lock(model, 'in:1', transform, trace)


def test_what_a_layer_is_called_is_not_what_it_computes():
    assert [is_stock(kind(8, 6, 1)) for kind in (nn.Conv2d, Conv2d, Standardised)] == [True, False, False]
    assert [is_stock(kind(8, 6)) for kind in (nn.Linear, Renamed, Gated)] == [True, True, False]
    patched = nn.Linear(8, 6)
    patched.forward = lambda x: x
    assert not is_stock(patched)


class Reader(nn.Module):
    """Uses the second layer's weight as data besides."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1)

    def forward(self, x):
        return {'out': [self.b(self.a(x)) + self.b.weight.mean(0)]}


def test_a_weight_that_something_else_reads_stays_plain(key):
    torch.manual_seed(0)
    model, x = Reader().eval(), torch.randn(1, 3, 4, 4)
    trace = Trace.of(model, {'test': lambda: model(x)})
    locked = lock(model.state_dict(), model, key, salt=SALT, trace=trace)
    assert [entry.point for entry in stamps_of(locked)[''].maps] == ['in:a']
    with pytest.raises(LockError, match='in:b.*its weight is used for more than the layer itself'):
        lock(model.state_dict(), model, key, 'in:b', salt=SALT, trace=trace)


class Prototypes(FCNHead):
    """Its loss reads the classifier's weights."""

    def cls_seg(self, feat):
        self.feat = feat
        return super().cls_seg(feat)

    def loss_by_feat(self, seg_logits, batch_data_samples):
        found = super().loss_by_feat(seg_logits, batch_data_samples)
        near = F.cosine_similarity(self.feat.mean((0, 2, 3))[None], self.conv_seg.weight.flatten(1))
        return {**found, 'loss_prototypes': near.mean()}


MODELS.register_module(module=Prototypes, force=True)


def test_a_weight_that_a_loss_reads_stays_plain(key, key_file):
    cfg = tiny_model_cfg()
    cfg.decode_head.type = 'Prototypes'
    torch.manual_seed(0)
    model = MODELS.build(cfg)
    locked = lock(model.state_dict(), model, key)
    points = {entry.point for entry in stamps_of(locked)[''].maps}
    assert 'in:decode_head.conv_seg' not in points and 'in:decode_head.convs.0.conv' in points
    keyed = MODELS.build(keyed_cfg(cfg, f'file:{key_file}', points='checkpoint')).eval()
    keyed.load_state_dict(locked)
    x = torch.rand(1, 3, 64, 64)
    assert gap(keyed(x, mode='tensor'), model.eval()(x, mode='tensor')) < 1e-4


@pytest.mark.parametrize('runtime', ['keyed', 'plain'])
def test_a_plain_checkpoint_of_such_a_model_is_trained_on_exactly(runtime, key_file):
    cfg = tiny_model_cfg()
    cfg.decode_head.type = 'Prototypes'
    torch.manual_seed(0)
    plain = MODELS.build(cfg)
    options = dict(start='plain', runtime=runtime, transform=SIGNED)
    model = MODELS.build(keyed_cfg(cfg, f'file:{key_file}', points='linear', **options))
    model.load_state_dict(plain.state_dict())
    points = {entry.point for entry in protection_of(model).stamp.maps}
    assert 'in:decode_head.conv_seg' not in points and 'in:decode_head.convs.0.conv' in points
    assert torch.equal(model.decode_head.conv_seg.weight, plain.decode_head.conv_seg.weight)
    x, samples = torch.rand(2, 3, 64, 64), data_samples(torch.zeros(2, 64, 64, dtype=torch.long))
    found, wanted = (m.train().loss(x, samples)['decode.loss_prototypes'] for m in (model, plain))
    assert float(found) == pytest.approx(float(wanted), rel=1e-4)
    if runtime == 'keyed':
        with pytest.raises(LockError, match='in:decode_head.conv_seg.*used for more than the layer itself'):
            MODELS.build(keyed_cfg(cfg, f'file:{key_file}', points='in:decode_head.conv_seg', **options))


def test_what_nobody_can_run_is_refused(key):
    model, x, trace = made(Renamed)
    mute = Trace.of(model, {'test': lambda: [model(x)][1:]})
    with pytest.raises(LockError, match='nothing that could be compared.*let them return what the model gives'):
        lock(model.state_dict(), model, key, trace=mute)
    assert stamps_of(lock(model.state_dict(), model, key, trace=trace))
