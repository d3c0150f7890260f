"""The laws of lock, rekey and unlock, on layers of every kind and on whole models."""

from __future__ import annotations

import copy
import math
import subprocess
import sys

import pytest
import torch
from mmseg.registry import MODELS
from torch import nn
from torch.nn.utils import parametrizations

from keyseg_mm import lock, plan_lock, protections, rekey, stamps_of, unlock, unlock_model
from keyseg_mm.bind import derive_map, stamp_tensor
from keyseg_mm.errors import (
    IntegrityError,
    KeyMismatchError,
    LockError,
    NotFiredError,
    PlainCheckpointError,
)
from keyseg_mm.model.points import Point
from keyseg_mm.model.sites import Trace, resolve
from keyseg_mm.runtime.encryptor import add_encryptors, encryptors_for
from keyseg_mm.tracing import PLAIN, by_stamp, by_weights, licensee_salt
from tests.support.configs import keyed_cfg, tiny_model_cfg
from tests.support.proofs import BENCH, prove

SALT = bytes(range(16))
TRANSFORMS = ['ChannelPermutation', 'SignedChannelPermutation', 'ChannelRotation']
IMAGE = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


class Standardised(nn.Conv2d):
    """Weight standardisation as mmcv's ConvWS2d has it, which the onedl stack may lack."""

    def forward(self, x):
        w = self.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 1e-5)
        return nn.functional.conv2d(x, w, self.bias, self.stride, self.padding)


Standardised.__name__ = 'ConvWS2d'


class Twice(nn.Module):
    """Calls one layer several times."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(6, 6, 3, padding=1)

    def forward(self, x):
        return self.conv(self.conv(x).relu())


LAYERS = {
    'dilated': (lambda: nn.Conv2d(6, 8, 3, padding=2, dilation=2), (2, 6, 9, 9)),
    'strided': (lambda: nn.Conv2d(6, 8, 3, stride=2), (2, 6, 9, 9)),
    'asymmetric': (lambda: nn.Conv2d(6, 8, (1, 5), padding=(0, 2), padding_mode='reflect'), (2, 6, 9, 9)),
    'patch embedding': (lambda: nn.Conv2d(3, 8, 4, stride=4), (2, 3, 8, 8)),
    'linear': (lambda: nn.Linear(6, 8, bias=False), (2, 5, 6)),
    'called twice': (Twice, (2, 6, 9, 9)),
}


def traced(model, *shapes):
    """A trace of a module that takes one tensor."""
    return Trace.of(model, {'test': lambda: [model(torch.rand(shape)) for shape in shapes]})


def with_encryptors(model, plan, key):
    """The model with the encryptors of a lock's plan."""
    sites = {str(site.point): site for site in plan.sites}
    maps = [derive_map(key, SALT, entry) for entry in plan.entries]
    add_encryptors(model, encryptors_for(model, [sites[entry.point] for entry in plan.entries], maps))
    return model


@pytest.mark.parametrize('transform', TRANSFORMS)
@pytest.mark.parametrize('layer', LAYERS)
def test_locked_with_the_key_is_plain(layer, transform, key, other_key):
    make, shape = LAYERS[layer]
    plain = nn.Sequential(make())
    trace = traced(plain, shape)
    state = copy.deepcopy(plain.state_dict())
    x = torch.randn(shape)
    expected = plain(x)
    plan = plan_lock(plain, 'linear', transform, trace)
    locked = lock(state, plain, key, 'linear', transform, SALT, trace)
    weights = {name: value for name, value in locked.items() if name in state}

    model = nn.Sequential(make())
    model.load_state_dict(weights)
    assert not torch.allclose(model(x), expected, rtol=1e-2, atol=1e-2)
    tolerance = 1e-4 if transform == 'ChannelRotation' else 1e-5
    gap = (with_encryptors(model, plan, key)(x) - expected).norm() / expected.norm()
    assert gap <= tolerance

    for back in (unlock(locked, key), unlock(rekey(locked, key, other_key), other_key)):
        assert back.keys() == state.keys()
        if transform == 'ChannelRotation':
            assert all(torch.allclose(back[n], state[n], rtol=1e-5, atol=1e-6) for n in state)
        else:
            assert all(torch.equal(back[n], state[n]) for n in state)
    assert all(torch.equal(a, b) for a, b in zip(state.values(), plain.state_dict().values())), 'the input changed'


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_any_float_dtype_bit_for_bit(dtype, key):
    model = nn.Sequential(nn.Linear(6, 8)).to(dtype)
    trace = Trace.of(model, {'test': lambda: model(torch.rand(2, 6, dtype=dtype))})
    state = model.state_dict()
    locked = lock(state, model, key, trace=trace)
    assert not torch.equal(locked['0.weight'], state['0.weight'])
    assert locked['0.weight'].dtype == dtype
    assert torch.equal(unlock(locked, key)['0.weight'], state['0.weight'])


def test_weight_standardised_takes_a_permutation_only(key):
    model = nn.Sequential(Standardised(6, 8, 3), nn.Conv2d(8, 8, 1))
    trace = traced(model, (2, 6, 9, 9))
    plan = plan_lock(model, 'linear', 'SignedChannelPermutation', trace)
    assert [e.transform['type'] for e in plan.entries] == ['ChannelPermutation', 'SignedChannelPermutation']
    x = torch.randn(2, 6, 9, 9)
    expected = model(x)
    locked = lock(model.state_dict(), model, key, 'linear', 'SignedChannelPermutation', SALT, trace)
    model.load_state_dict({n: v for n, v in locked.items() if n in model.state_dict()})
    assert not torch.allclose(model(x), expected, atol=1e-2)
    assert torch.allclose(with_encryptors(model, plan, key)(x), expected, atol=1e-5)
    with pytest.raises(LockError, match='standardised'):
        plan_lock(model, 'in:0', 'SignedChannelPermutation', trace)


class Deformable(nn.Module):
    """A stand-in with the parameters of mmcv's pack: offsets and result come from the same input."""

    groups = 1

    def __init__(self, deform_groups=1):
        super().__init__()
        self.deform_groups = deform_groups
        self.weight = nn.Parameter(torch.randn(8, 6, 1, 1))
        self.conv_offset = nn.Conv2d(6, 1, 1)

    def forward(self, x):
        shift = 1 + torch.sigmoid(self.conv_offset(x))
        return nn.functional.conv2d(x * shift, self.weight)


Deformable.__name__ = 'DeformConv2dPack'


def test_deformable_pack_carries_the_map_in_both_weights(key, other_key):
    model = nn.Sequential(Deformable())
    trace = traced(model, (2, 6, 5, 5))
    plan = plan_lock(model, 'linear', trace=trace)
    assert {e.point: e.weights for e in plan.entries} == {
        'in:0': ('0.weight', '0.conv_offset.weight'),
        'in:0.conv_offset': ('0.conv_offset.weight',),
    }
    x = torch.randn(2, 6, 5, 5)
    state, expected = copy.deepcopy(model.state_dict()), model(x)
    locked = lock(state, model, key, salt=SALT, trace=trace)
    model.load_state_dict({n: v for n, v in locked.items() if n in state})
    assert not torch.allclose(model(x), expected, atol=1e-2)
    assert torch.allclose(with_encryptors(model, plan, key)(x), expected, atol=1e-5)
    back = unlock(rekey(locked, key, other_key), other_key)
    assert all(torch.equal(back[n], state[n]) for n in state)
    grouped = nn.Sequential(Deformable(deform_groups=2))
    with pytest.raises(LockError, match='grouped'):
        plan_lock(grouped, 'in:0', trace=traced(grouped, (2, 6, 5, 5)))


class Odd(nn.Module):
    """Everything that cannot be locked as it is, beside one layer that can."""

    def __init__(self):
        super().__init__()
        self.good = nn.Conv2d(6, 6, 1)
        self.grouped = nn.Conv2d(6, 6, 3, padding=1, groups=3)
        self.spectral = parametrizations.spectral_norm(nn.Conv2d(6, 6, 1))
        self.old_norm = torch.nn.utils.weight_norm(nn.Conv2d(6, 6, 1))
        self.tied = nn.Conv2d(6, 6, 1)
        self.tied_too = nn.Conv2d(6, 6, 1)
        self.tied_too.weight = self.tied.weight
        self.never = nn.Conv2d(6, 6, 1)
        self.one = nn.Conv2d(1, 6, 1)
        self.table = nn.Embedding(4, 6)

    def forward(self, x):
        x = self.old_norm(self.spectral(self.grouped(self.good(x))))
        x = self.tied_too(self.tied(x).relu()) + self.one(x[:, :1])
        return x + self.table.weight.mean(0).view(1, -1, 1, 1)


REASONS = {
    'grouped': 'grouped',
    'spectral': 'computed from other tensors',
    'old_norm': 'computed from other tensors',
    'tied': 'shared',
    'tied_too': 'shared',
    'never': 'never called',
    'one': 'single channel',
    'table': 'Embedding',
}


@pytest.mark.filterwarnings('ignore:.*weight_norm')
def test_what_cannot_be_locked_is_left_out_with_its_reason(key):
    model = Odd().eval()
    trace = traced(model, (2, 6, 5, 5))
    plan = plan_lock(model, 'linear', trace=trace)
    assert [e.point for e in plan.entries] == ['in:good']
    for name, words in REASONS.items():
        assert words in plan.left_out[name], name
    x = torch.randn(2, 6, 5, 5)
    expected = model(x)
    locked = lock(model.state_dict(), model, key, salt=SALT, trace=trace)
    changed = [n for n, v in model.state_dict().items() if not torch.equal(locked[n], v)]
    assert changed == ['good.weight']
    model.load_state_dict({n: v for n, v in locked.items() if n in model.state_dict()})
    assert torch.allclose(with_encryptors(model, plan, key)(x), expected, atol=1e-5)
    for name in ('grouped', 'spectral', 'tied'):
        with pytest.raises(LockError, match=REASONS[name]):
            plan_lock(model, f'in:{name}', trace=trace)


def test_a_module_under_two_names_is_locked_under_both(key):
    model = nn.Module()
    model.a = model.b = nn.Conv2d(6, 6, 1)
    model.forward = lambda x: model.b(model.a(x).relu())
    trace = traced(model, (2, 6, 5, 5))
    plan = plan_lock(model, 'linear', trace=trace)
    assert [e.weights for e in plan.entries] == [('a.weight', 'b.weight')]
    state = model.state_dict()
    locked = lock(state, model, key, trace=trace)
    assert not torch.equal(locked['a.weight'], state['a.weight'])
    assert locked['a.weight'] is locked['b.weight']
    assert torch.equal(unlock(locked, key)['b.weight'], state['b.weight'])


# --- out: points ---------------------------------------------------------------------------------------------------


class Read(nn.Module):
    """A map that two convolutions read, and one that a convolution and a pooling read."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.left, self.right = nn.Conv2d(6, 6, 1), nn.Conv2d(6, 4, 3, padding=1)
        self.tail = nn.Conv2d(6, 4, 1)

    def forward(self, x):
        x = self.stem(x)
        left = self.left(x)
        return self.right(x) + self.tail(left) + left.mean()


def test_an_out_point_is_absorbed_by_all_its_readers(key, other_key):
    model = Read()
    trace = traced(model, (2, 3, 8, 8))
    plan = plan_lock(model, ['out:stem', 'in:right'], 'SignedChannelPermutation', trace)
    assert {e.point: e.weights for e in plan.entries} == {
        'out:stem': ('left.weight', 'right.weight'),
        'in:right': ('right.weight',),
    }
    x = torch.randn(2, 3, 8, 8)
    state, expected = copy.deepcopy(model.state_dict()), model(x)
    locked = lock(state, model, key, ['out:stem', 'in:right'], salt=SALT, trace=trace)
    model.load_state_dict({n: v for n, v in locked.items() if n in state})
    assert not torch.allclose(model(x), expected, atol=1e-2)
    assert torch.allclose(with_encryptors(model, plan, key)(x), expected, atol=1e-5)
    back = unlock(rekey(locked, key, other_key), other_key)
    assert all(torch.equal(back[n], state[n]) for n in state)


def test_an_out_point_that_something_else_reads_is_refused():
    model = Read()
    trace = traced(model, (2, 3, 8, 8))
    with pytest.raises(LockError, match=r'out:left: its map is read by mean in \., .*take in:tail instead'):
        plan_lock(model, 'out:left', trace=trace)
    with pytest.raises(LockError, match='no layer reads its map'):
        plan_lock(model, 'out:.', trace=trace)


# --- whole models --------------------------------------------------------------------------------------------------


@pytest.fixture
def plain():
    torch.manual_seed(0)
    model = MODELS.build(tiny_model_cfg())
    model.init_weights()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 2)
    return model.eval()


def logits(model):
    return model.eval().encode_decode(IMAGE, [dict(img_shape=(64, 64), ori_shape=(64, 64))] * 2).detach()


def loaded(plain, locator, state, **protection):
    model = MODELS.build(keyed_cfg(tiny_model_cfg(), locator, **protection))
    model.load_state_dict(state)
    return model


@pytest.mark.parametrize('how', [dict(points='checkpoint'), dict(unlock=True), dict(points='linear')])
@pytest.mark.parametrize('transform', TRANSFORMS)
def test_a_locked_model_runs_with_its_key(plain, key, key_file, transform, how):
    locked = lock(plain.state_dict(), plain, key, transform=transform)
    if 'linear' in how.values():
        how = {**how, 'transform': transform}
    model = loaded(plain, f'file:{key_file}', locked, **how)
    expected = logits(plain)
    gap = (logits(model) - expected).norm() / expected.norm()
    assert gap <= (1e-4 if transform == 'ChannelRotation' else 1e-5)
    assert (logits(loaded(plain, 'none', locked, **how)) - expected).norm() / expected.norm() > 0.1
    assert (logits(loaded(plain, 'random:1', locked, **how)) - expected).norm() / expected.norm() > 0.1
    calls = sum(encryptor.calls for p in protections(model) for encryptor in p.encryptors)
    assert (calls == 0) == bool(how.get('unlock'))


def test_what_was_unlocked_in_memory_is_the_plain_model(plain, key, key_file, caplog):
    locked = lock(plain.state_dict(), plain, key)
    model = loaded(plain, f'file:{key_file}', locked, unlock=True)
    assert torch.equal(logits(model), logits(plain))
    state = model.state_dict()
    assert 'plain weights' in caplog.text
    assert not stamps_of(state)
    assert all(torch.equal(state[n], v) for n, v in plain.state_dict().items())
    assert stamps_of(locked), "the loaded state_dict is the caller's and stays"


@pytest.mark.parametrize(
    'how', [dict(points='checkpoint'), dict(points='linear', transform='SignedChannelPermutation')]
)
def test_unlock_of_a_live_model(plain, key, key_file, how):
    model = loaded(plain, f'file:{key_file}', lock(plain.state_dict(), plain, key), **how)
    assert not all(torch.equal(model.state_dict()[n], v) for n, v in plain.state_dict().items())
    assert unlock_model(model) is None
    assert not protections(model)
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert all(torch.equal(model.state_dict()[n], v) for n, v in plain.state_dict().items())
    with pytest.raises(LockError, match='not protected'):
        unlock_model(model)


def test_unlock_of_a_model_trained_with_the_key(plain, key, key_file):
    """The tiny model's head reads its stage by a convolution; so does the auxiliary head; the rest is read by none."""
    cfg = keyed_cfg(tiny_model_cfg(), f'file:{key_file}', points=['out:backbone:2', 'out:backbone:3'])
    model = MODELS.build(cfg)
    model.init_weights()
    expected, state = logits(model), model.state_dict()
    with pytest.raises(LockError, match='--config'):
        unlock(state, key)
    back = unlock(state, key, plain)
    assert not torch.equal(back['decode_head.convs.0.conv.weight'], state['decode_head.convs.0.conv.weight'])
    plain.load_state_dict(back)
    assert torch.allclose(logits(plain), expected, rtol=1e-4, atol=1e-5)
    memory = loaded(plain, f'file:{key_file}', state, unlock=True)
    assert torch.allclose(logits(memory), expected, rtol=1e-4, atol=1e-5)
    unlock_model(model)
    assert torch.allclose(logits(model), expected, rtol=1e-4, atol=1e-5)
    assert not protections(model)


def test_what_cannot_be_unlocked_stays_as_it_is(key, key_file):
    """A pooling reads the map: nothing to absorb it into."""
    model_cfg = tiny_model_cfg(aux=False)
    model_cfg.decode_head = dict(model_cfg.decode_head, type='PSPHead', pool_scales=(1, 2))
    model_cfg.decode_head.pop('num_convs')
    model_cfg.decode_head.pop('concat_input')
    model = MODELS.build(keyed_cfg(model_cfg, f'file:{key_file}', points='out:backbone:3'))
    before, state = logits(model), copy.deepcopy(model.state_dict())
    with pytest.raises(LockError, match='adaptive_avg_pool2d'):
        unlock_model(model)
    assert len(protections(model)) == 1
    assert torch.equal(logits(model), before)
    with pytest.raises(LockError, match='runs with its encryptors only'):
        unlock(state, key, MODELS.build(model_cfg))


def test_errors_of_the_key_and_the_stamp(plain, key, other_key, key_file):
    locked = lock(plain.state_dict(), plain, key)
    with pytest.raises(LockError, match='protected already.*rekey'):
        lock(locked, plain, key)
    with pytest.raises(KeyMismatchError, match=f'{key.id}.*{other_key.id}'):
        unlock(locked, other_key)
    with pytest.raises(KeyMismatchError, match=f'{key.id}.*{other_key.id}'):
        rekey(locked, other_key, key)
    with pytest.raises(LockError, match='plain'):
        unlock(plain.state_dict(), key)
    with pytest.raises(LockError, match=r'1 missing \(backbone.conv1.weight\)'):
        lock({n: v for n, v in plain.state_dict().items() if n != 'backbone.conv1.weight'}, plain, key)
    with pytest.raises(LockError, match='not in the model'):
        lock({**plain.state_dict(), 'ema_weight': torch.ones(2)}, plain, key)
    with pytest.raises(PlainCheckpointError):
        loaded(plain, f'file:{key_file}', plain.state_dict(), unlock=True)
    empty = MODELS.build(keyed_cfg(tiny_model_cfg(), f'file:{key_file}', points='checkpoint'))
    assert not stamps_of(empty.state_dict())
    with pytest.raises(NotFiredError, match='no protected checkpoint was loaded'):
        empty(IMAGE, mode='tensor')
    empty.load_state_dict(locked)
    assert torch.allclose(empty.eval()(IMAGE, mode='tensor'), plain(IMAGE, mode='tensor'), atol=1e-4)


@pytest.mark.parametrize('how', [dict(points='checkpoint'), dict(unlock=True)])
def test_the_mac_finds_one_altered_bit(plain, key, other_key, key_file, how):
    locked = lock(plain.state_dict(), plain, key)
    bias = locked['decode_head.conv_seg.bias'].clone()
    bias.view(torch.int32)[0] ^= 1
    altered = {**locked, 'decode_head.conv_seg.bias': bias}
    for use in (lambda: unlock(altered, key), lambda: rekey(altered, key, other_key)):
        with pytest.raises(IntegrityError, match='altered'):
            use()
    with pytest.raises(IntegrityError, match='verify=False'):
        loaded(plain, f'file:{key_file}', altered, **how)
    model = loaded(plain, f'file:{key_file}', altered, verify=False, **how)
    assert torch.allclose(logits(model), logits(plain), atol=1e-4)
    assert unlock(altered, key, check=False).keys() == plain.state_dict().keys()


def test_a_stamp_without_a_mac_is_refused(plain, key):
    locked = lock(plain.state_dict(), plain, key)
    name, plan = next(iter((n, p) for p in stamps_of(locked).values() for n in [p.name]))
    bare = type(plan)(plan.key_id, plan.salt, plan.entries)
    assert plan.mac
    with pytest.raises(IntegrityError, match='without a MAC'):
        unlock({**locked, name: stamp_tensor(bare)}, key)


def test_rekeying_changes_every_locked_weight_and_the_salt(plain, key, other_key):
    locked = lock(plain.state_dict(), plain, key)
    again = rekey(locked, key, other_key)
    old, new = (next(iter(stamps_of(s).values())) for s in (locked, again))
    assert (old.key_id, new.key_id) == (key.id, other_key.id)
    assert old.salt != new.salt
    # the picture's three channels are left out: a fresh salt may leave these as they are
    names = [name for entry in old.entries for name in entry.weights if entry.channels > 4]
    assert len(names) > 20
    assert not any(torch.equal(locked[n], again[n]) for n in names)
    assert rekey(locked, key, key)[names[0]].shape == locked[names[0]].shape
    assert not torch.equal(rekey(locked, key, key)[names[-1]], locked[names[-1]]), 'the same key has a fresh salt'


# --- the proof -----------------------------------------------------------------------------------------------------


def test_the_proof_of_a_good_lock(plain, key):
    plan = plan_lock(plain)
    proof = prove(plain, plain.state_dict(), plan, key, SALT)
    assert proof.with_key.is_equal
    assert proof.with_key.error < 1e-5
    assert not proof.without['without it'].is_the_same and not proof.is_weak
    assert proof.plan == plan


def test_the_proof_blames_the_layer_whose_weight_is_used_otherwise(plain, key):
    class Reader(type(plain.decode_head)):
        """Uses a layer's weight as data besides, as K-Net does."""

        def forward(self, inputs):
            return super().forward(inputs) + self.conv_seg.weight[:, 0].view(1, -1, 1, 1)

    plain.decode_head.__class__ = Reader
    plan = plan_lock(plain)
    proof = prove(plain, plain.state_dict(), plan, key, SALT)
    assert proof.with_key.is_equal
    assert {e.point for e in plan.maps} - {e.point for e in proof.plan.maps} == {'in:decode_head.conv_seg'}
    assert 'more than the layer itself' in proof.plan.left_out['decode_head.conv_seg']
    assert [s.point for s in proof.plan.sites] == [Point.parse(e.point) for e in proof.plan.maps]
    with pytest.raises(LockError, match='in:decode_head.conv_seg.*Nothing was written'):
        prove(plain, plain.state_dict(), plan_lock(plain, ['linear', 'in:decode_head.conv_seg']), key, SALT)


def test_a_point_that_changes_nothing_is_seen(plain, key):
    """The second convolution of a block whose norm is all but zero: its input hardly matters."""
    plain.backbone.layer4[1].bn2.weight.data.fill_(1e-6)
    state = plain.state_dict()
    point = 'in:backbone.layer4.1.conv2'
    with pytest.raises(LockError, match='nothing would be protected'):
        prove(plain, state, plan_lock(plain, point), key, SALT)
    assert not prove(plain, state, plan_lock(plain), key, SALT).is_weak


def test_agreement_is_measured_against_chance(plain):
    outputs = BENCH.run(plain)
    same = BENCH.agreement(outputs, outputs)
    assert (same.error, same.loss_error, same.same) == (0, 0, 1)
    name = next(n for n, t in outputs.items() if n.startswith('test') and t.dim() == 3 and t.shape[0] > 1)
    a = torch.zeros(2, 4, 4)
    a[1, :, :2] = 1  # half the pixels of each class
    b = a.flip(2)  # all of them the other way round
    halves = BENCH.agreement({name: a}, {name: b})
    assert (halves.same, halves.kappa) == (0, -1)
    constant = BENCH.agreement({name: torch.ones(2, 4, 4)}, {name: torch.ones(2, 4, 4)})
    assert math.isnan(constant.kappa)


# --- licensees -----------------------------------------------------------------------------------------------------

NAMES = ['ACME Ltd', 'Bolt', 'Crux GmbH']


@pytest.fixture
def master(other_key):
    return other_key


def copy_for(name, owners, master):
    return rekey(owners, master, master.licensee(name), salt=licensee_salt(master, name, owners))


@pytest.mark.parametrize('transform', TRANSFORMS)
def test_a_stripped_and_fine_tuned_copy_is_traced(plain, master, transform):
    state = plain.state_dict()
    owners = lock(state, plain, master, transform=transform)
    found = copy_for('Bolt', owners, master)
    assert by_stamp(found, master, NAMES) == ('Bolt', True)
    assert by_stamp(found, master, ['ACME Ltd']) is None
    assert by_stamp({**found, 'decode_head.conv_seg.bias': torch.ones(19)}, master, NAMES) == ('Bolt', False)

    stripped = {n: v for n, v in found.items() if n in state}
    assert by_stamp(stripped, master, NAMES) is None
    noise = torch.Generator().manual_seed(0)
    tuned = {
        n: v + 0.3 * v.std() * torch.randn(v.shape, generator=noise) if v.dim() > 1 else v for n, v in stripped.items()
    }
    for original in (state, owners):
        for suspect in (stripped, tuned):
            ranking = by_weights(suspect, original, master, NAMES)
            assert ranking[0].name == 'Bolt'
            assert ranking[0].is_certain
            assert not any(likeness.is_certain for likeness in ranking[1:])


def test_what_has_no_trace_is_not_traced(plain, key, master):
    state = plain.state_dict()
    owners = lock(state, plain, master)
    unlocked = unlock(copy_for('Bolt', owners, master), master.licensee('Bolt'))
    assert by_weights(unlocked, owners, master, NAMES)[0].name == PLAIN
    strangers = {n: v for n, v in lock(state, plain, key).items() if n in state}
    assert not by_weights(strangers, owners, master, NAMES)[0].is_certain
    with pytest.raises(LockError, match='another model'):
        by_weights({'x.weight': torch.ones(4, 32)}, owners, master, NAMES)


def test_a_licensee_gets_another_salt_for_each_model(plain, master):
    state = plain.state_dict()
    owners = lock(state, plain, master)
    assert licensee_salt(master, 'Bolt', state) == licensee_salt(master, 'Bolt', owners)
    assert licensee_salt(master, 'Bolt', state) != licensee_salt(master, 'ACME Ltd', state)
    release = {**state, 'decode_head.conv_seg.bias': torch.ones(19)}
    assert licensee_salt(master, 'Bolt', release) != licensee_salt(master, 'Bolt', state)


def test_preset_points_resolve_alike(plain):
    """A config that says `linear` meets the plan of the default lock."""
    from keyseg_mm.mm.dryrun import trace_module

    trace = trace_module(plain)
    sites = resolve('linear', plain, trace)
    assert [str(s.point) for s in sites] == [e.point for e in plan_lock(plain, trace=trace).entries]


PLAIN_MODULE = """
import sys
import torch
from torch import nn
import keyseg_mm
assert not {'torchvision', 'mmseg', 'mmengine', 'mmcv'} & set(sys.modules)
from keyseg_mm import SecretKey, Trace, lock, unlock
key, image = SecretKey(bytes(range(32))), torch.rand(1, 3, 9, 9, generator=torch.Generator().manual_seed(0))
model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
plain = model.state_dict()
try:
    lock(plain, model, key)
except keyseg_mm.KeysegError as error:
    assert 'trace=Trace.of(model' in str(error), error
else:
    raise SystemExit('locked without knowing what runs')
trace = Trace.of(model, {'test': lambda: model(image)})
locked = lock(plain, model, key, salt=bytes(16), trace=trace)
assert not torch.equal(locked['2.weight'], plain['2.weight'])
back = unlock(locked, key)
assert all(torch.equal(back[n], plain[n]) for n in plain) and back.keys() == plain.keys()
tensors = lock(plain, model, key, scheme='tensors')
assert all(torch.equal(unlock(tensors, key)[n], plain[n]) for n in plain)
assert not {'mmseg', 'mmengine', 'mmcv'} & set(sys.modules)
"""


def test_a_plain_module_is_locked_without_the_host():
    done = subprocess.run([sys.executable, '-c', PLAIN_MODULE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
