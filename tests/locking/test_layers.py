"""The laws of lock, rekey and unlock, on layers of every kind."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from keyseg_mm import lock, plan_lock, rekey, unlock
from keyseg_mm.bind import derive_map
from keyseg_mm.errors import LockError, TransformError
from keyseg_mm.model.sites import Trace
from keyseg_mm.runtime.encryptor import add_encryptors, encryptors_for

SALT = bytes(range(16))
TRANSFORMS = ['ChannelPermutation', 'SignedChannelPermutation', 'ChannelRotation']


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


class Attends(nn.Module):
    """Attention as hosts call it: by name, to itself or to half of its tokens, which may be one tensor or several."""

    def __init__(self, cross=False, **kwargs):
        super().__init__()
        self.cross = cross
        self.attn = nn.MultiheadAttention(6, 2, batch_first=True, **kwargs)

    def forward(self, x):
        others = x[:, ::2] if self.cross else x
        return self.attn(query=x, key=others, value=others, need_weights=self.training)[0]


LAYERS = {
    'dilated': (lambda: nn.Conv2d(6, 8, 3, padding=2, dilation=2), (2, 6, 9, 9)),
    'strided': (lambda: nn.Conv2d(6, 8, 3, stride=2), (2, 6, 9, 9)),
    'asymmetric': (lambda: nn.Conv2d(6, 8, (1, 5), padding=(0, 2), padding_mode='reflect'), (2, 6, 9, 9)),
    'patch embedding': (lambda: nn.Conv2d(3, 8, 4, stride=4), (2, 3, 8, 8)),
    'linear': (lambda: nn.Linear(6, 8, bias=False), (2, 5, 6)),
    'called twice': (Twice, (2, 6, 9, 9)),
    'grouped': (lambda: nn.Conv2d(12, 8, 3, groups=2), (2, 12, 9, 9)),
    'transposed': (lambda: nn.ConvTranspose2d(6, 8, 3, stride=2), (2, 6, 9, 9)),
    'transposed in groups': (lambda: nn.ConvTranspose2d(12, 8, 2, stride=2, groups=2), (2, 12, 9, 9)),
    'attention': (Attends, (2, 5, 6)),
    'cross-attention': (lambda: Attends(cross=True, bias=False), (2, 5, 6)),
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


def test_groups_keep_apart_and_attentions_carry_two_maps(key):
    model = nn.Sequential(nn.Conv2d(12, 8, 3, groups=2), nn.ConvTranspose2d(8, 6, 2), nn.Flatten(2), nn.Linear(16, 6))
    model.append(Attends())
    plan = plan_lock(model, trace=traced(model, (2, 12, 5, 5)))
    assert {e.point: (e.along, e.transform.get('groups'), e.weights) for e in plan.entries} == {
        'in:0': (1, 2, ('0.weight',)),
        'in:1': (0, None, ('1.weight',)),
        'in:3': (1, None, ('3.weight',)),
        'in:4.attn': (1, None, ('4.attn.in_proj_weight',)),
        'back:4.attn': (0, None, ('4.attn.out_proj.weight', '4.attn.out_proj.bias')),
    }
    assert not plan.left_out
    table = derive_map(key, SALT, plan.maps[0]).tables()['permutation']
    assert {*table[:6]} == {*range(6)} and [*table] != [*range(12)]
    with pytest.raises(TransformError, match='not to be chosen'):
        plan_lock(model, 'in:0', dict(type='ChannelPermutation', groups=2), traced(model, (2, 12, 5, 5)))
    with pytest.raises(LockError, match='would mix its 2 groups'):
        plan_lock(model, 'in:0', 'ChannelRotation', traced(model, (2, 12, 5, 5)))


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
    with pytest.raises(LockError, match='SignedChannelPermutation of its input changes'):
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
    plan = plan_lock(grouped, 'in:0', trace=traced(grouped, (2, 6, 5, 5)))
    assert [entry.transform.get('groups') for entry in plan.entries] == [2]


class Odd(nn.Module):
    """Everything that cannot be locked as it is, beside one layer that can."""

    def __init__(self):
        super().__init__()
        self.good = nn.Conv2d(6, 6, 1)
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.spectral = parametrizations.spectral_norm(nn.Conv2d(6, 6, 1))
        self.old_norm = torch.nn.utils.weight_norm(nn.Conv2d(6, 6, 1))
        self.tied = nn.Conv2d(6, 6, 1)
        self.tied_too = nn.Conv2d(6, 6, 1)
        self.tied_too.weight = self.tied.weight
        self.never = nn.Conv2d(6, 6, 1)
        self.one = nn.Conv2d(1, 6, 1)
        self.table = nn.Embedding(4, 6)

    def forward(self, x):
        x = self.old_norm(self.spectral(self.depthwise(self.good(x))))
        x = self.tied_too(self.tied(x).relu()) + self.one(x[:, :1])
        return x + self.table.weight.mean(0).view(1, -1, 1, 1)


REASONS = {
    'depthwise': 'depthwise',
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
    for name in ('depthwise', 'spectral', 'tied'):
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
