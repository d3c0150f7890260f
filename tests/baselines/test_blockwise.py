"""The laws of the block-wise transforms, and that whatever needs a channel map refuses them."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from mmseg.registry import MODELS
from torch import nn

from keyseg_mm import attach, entries_at, find_leaks, lock, plan_lock, protections, rekey, unlock, unlock_model
from keyseg_mm.baselines.blockwise import BlockShuffle
from keyseg_mm.bind import derive_channel_map, derive_map
from keyseg_mm.cli import main
from keyseg_mm.entries import MapEntry, describe
from keyseg_mm.errors import KeyMismatchError, LockError, SecretExposedError, TransformError
from keyseg_mm.keys.derive import KeyStream
from keyseg_mm.maps import CHANNEL_MAPS, TRANSFORMS, ChannelPermutation, normal_form
from keyseg_mm.mm.config import build_plain_model, read_config
from keyseg_mm.model.points import Point
from keyseg_mm.model.sites import Site
from keyseg_mm.stamp import Stamp, stamps_of
from tests.support.configs import keyed_cfg, tiny_model_cfg

NAMES = sorted(set(TRANSFORMS) - set(CHANNEL_MAPS))
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
SPECS = [dict(type=name, block=2) for name in NAMES]


def make(name: str, channels: int, seed: int = 0, **params):
    return TRANSFORMS[name].derive(KeyStream(bytes([seed] * 32)), channels, **params)


def by_hand(t, x, size):
    """The definition, value by value."""
    y, tables = x.clone(), t.tables()
    high, wide = x.shape[2] // size * size, x.shape[3] // size * size
    for i in range(x.shape[2]):
        for j in range(x.shape[3]):
            for c in range(t.channels):
                if 'signs' in tables:
                    y[:, c, i, j] = x[:, c, i, j] * int(tables['signs'][c, i % size, j % size])
                elif i < high and j < wide:
                    number = int(tables['block permutation'][(c * size + i % size) * size + j % size])
                    channel, row, column = number // size**2, number // size % size, number % size
                    y[:, c, i, j] = x[:, channel, i - i % size + row, j - j % size + column]
                else:
                    y[:, c, i, j] = x[:, int(tables['permutation of the rest'][c]), i, j]
    return y


def test_there_are_two():
    assert NAMES == ['BlockShuffle', 'NegativePositive']


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(NAMES),
    st.integers(1, 5),
    st.integers(1, 20),
    st.integers(0, 3),
    st.integers(0, 11),
    st.integers(0, 11),
    st.sampled_from(DTYPES),
)
def test_inverse_undoes(name, block, channels, batch, high, wide, dtype):
    """Every size, also no multiple of the block, smaller than one, and empty; bit for bit."""
    assume(channels * block > 1)
    t = make(name, channels, block=block)
    x = torch.randn(batch, channels, high, wide).to(dtype)
    y = t(x)
    assert y.dtype == dtype and y.shape == x.shape
    assert torch.equal(t.inverse()(y), x)
    assert torch.equal(t(t.inverse()(x)), x)
    assert t.inverse().inverse() is t


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('block', [1, 2, 3])
@pytest.mark.parametrize('size', [(6, 6), (7, 8), (2, 5), (1, 1)])
def test_it_does_what_it_says(name, block, size):
    t, x = make(name, 4, block=block), torch.randn(2, 4, *size)
    assert torch.equal(t(x), by_hand(t, x, block))


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('size', [(8, 8), (9, 7)])
def test_changes_what_it_maps_and_keeps_its_size(name, size):
    t, x = make(name, 32, block=2), torch.randn(2, 32, *size)
    assert not torch.allclose(t(x), x, atol=0.1)
    assert torch.allclose(t(x).norm(), x.norm(), rtol=1e-5)
    other = make(name, 32, seed=1, block=2)
    assert not torch.allclose(other(x), t(x), atol=0.1)
    assert not torch.allclose(other.inverse()(t(x)), x, atol=0.1)
    for row in range(size[0]):  # the rest too: no row or column is left as it was
        assert not torch.equal(t(x)[:, :, row], x[:, :, row])
    for column in range(size[1]):
        assert not torch.equal(t(x)[..., column], x[..., column])


def test_values_cross_positions_and_channels():
    """What makes it spatially variant: one value comes out at another place, and another channel."""
    x = torch.arange(2 * 8 * 4 * 4, dtype=torch.float32).view(2, 8, 4, 4)
    y = make('BlockShuffle', 8, block=4)(x)
    assert sorted(y[0].flatten().tolist()) == sorted(x[0].flatten().tolist())
    assert not torch.equal(y.sort(1).values, x.sort(1).values)
    ones = BlockShuffle.derive(KeyStream(bytes(32)), 16, block=1)
    alike = ChannelPermutation(ones.tables()['block permutation'])
    maps = torch.randn(2, 16, 5, 5)
    assert torch.equal(ones(maps), alike(maps))


@pytest.mark.parametrize('block, channels', [(1, 7), (2, 16), (3, 5)])
def test_half_of_the_values_change_sign(block, channels):
    signs = make('NegativePositive', channels, block=block).tables()['signs']
    assert (signs == -1).sum() == channels * block * block // 2


@pytest.mark.parametrize('name', NAMES)
def test_gradient_goes_back_through_the_inverse(name):
    t = make(name, 3, block=2)
    x = torch.randn(2, 3, 5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: t(v), x)
    assert torch.autograd.gradgradcheck(lambda v: t(v).pow(3), x)
    y, g = t(x), torch.randn(2, 3, 5, 4, dtype=torch.float64)
    y.backward(g)
    assert torch.equal(x.grad, t.inverse()(g))


@pytest.mark.parametrize('name', NAMES)
def test_layouts(name):
    t, x = make(name, 16, block=3), torch.randn(2, 16, 7, 8)
    want = t(x)
    last = t(x.to(memory_format=torch.channels_last))
    assert last.is_contiguous(memory_format=torch.channels_last)
    strided = torch.randn(2, 16, 7, 16)[..., ::2]
    strided.copy_(x)
    assert not strided.is_contiguous()
    expanded = x[:1].expand(2, -1, -1, -1)
    for got in (last, t(strided)):
        assert torch.equal(got, want)
    assert torch.equal(t(expanded)[1], want[0])


@pytest.mark.parametrize('name', NAMES)
def test_an_in_place_operation_may_follow(name):
    t, x = make(name, 16), torch.randn(2, 16, 6, 7)
    for layout in (torch.contiguous_format, torch.channels_last):
        leaf = x.clone(memory_format=layout).requires_grad_()
        y = torch.relu_(t(leaf))
        y.sum().backward()
        want = t.inverse()((y > 0).to(x.dtype))
        assert want.abs().sum() > 0 and torch.equal(leaf.grad, want)
    kept = x.clone()
    t(x).zero_()
    assert torch.equal(x, kept)


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_autocast_changes_nothing(name, dtype):
    t, x = make(name, 16), torch.randn(2, 16, 4, 5)
    want = t(x)
    with torch.autocast('cpu', dtype=dtype):
        assert torch.equal(t(x), want)
        low = nn.Conv2d(16, 16, 1)(x)
        assert low.dtype == dtype and t(low).dtype == dtype
        assert torch.equal(t.inverse()(t(low)), low)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU here')
@pytest.mark.parametrize('name', NAMES)
def test_gpu_says_the_same(name):
    t, x = make(name, 16), torch.randn(2, 16, 5, 4)
    assert torch.equal(t(x.cuda()).cpu(), t(x))


@pytest.mark.parametrize('name', NAMES)
def test_they_are_secrets(name):
    t = make(name, 300)
    with pytest.raises(SecretExposedError):
        pickle.dumps(t)
    assert copy.deepcopy(t) is t and not hasattr(t, '__dict__')
    assert repr(t) == f'<{name} of 300 channels>'


@pytest.mark.parametrize('name', NAMES)
def test_bad_use_is_refused(name, key):
    for x, dim in ((torch.randn(2, 9, 16), -1), (torch.randn(2, 16, 9), 1), (torch.randn(2, 4, 4, 16), -1)):
        with pytest.raises(TransformError, match='take another point'):
            make(name, 16)(x, dim)
    with pytest.raises(TransformError, match='16 channels met 8'):
        make(name, 16)(torch.randn(1, 8, 2, 2))
    for block in (0, -1, 33, 'x', 2.0, True):
        with pytest.raises(TransformError, match='block is a whole number'):
            normal_form(dict(type=name, block=block))
    with pytest.raises(TransformError, match="takes no 'blocks'"):
        normal_form(dict(type=name, blocks=2))
    tokens = nn.Sequential(nn.LayerNorm(16))
    site = Site(Point('out', '0'), 16, -1, (2, 9, 16), 'LayerNorm')
    with pytest.raises(TransformError, match=r'out:0: .* tokens'):
        attach(tokens, key, [site], entries_at([site], name))
    assert type(tokens[0]) is nn.LayerNorm and not protections(tokens)


@pytest.mark.parametrize('spec', SPECS, ids=NAMES)
def test_nothing_that_needs_a_channel_map_takes_them(spec, key, other_key, key_file, tmp_path):
    """lock, rekey, unlock, unlocking as it is loaded, audit: each says what is wrong, and writes nothing."""
    keyed = MODELS.build(keyed_cfg(tiny_model_cfg(), f'file:{key_file}', transform=spec))
    plain = MODELS.build(tiny_model_cfg())
    state = keyed.state_dict()
    refusals = [
        lambda: plan_lock(plain, 'linear', spec),
        lambda: lock(plain.state_dict(), plain, key, transform=spec),
        lambda: unlock(state, key, plain),
        lambda: unlock(state, key),
        lambda: rekey(state, key, other_key, plain),
        lambda: unlock_model(keyed),
        lambda: MODELS.build(keyed_cfg(tiny_model_cfg(), f'file:{key_file}', runtime='plain')).load_state_dict(state),
    ]
    for refusal in refusals:
        with pytest.raises(LockError, match=f'{spec["type"]}: what it does .* take ChannelPermutation'):
            refusal()
    with pytest.raises(LockError, match='no weights can carry'):
        derive_channel_map(key, bytes(16), MapEntry('out:x', 8, spec))
    torch.save({'state_dict': state}, tmp_path / 'model.pth')
    (tmp_path / 'plain.py').write_text(f'model = {tiny_model_cfg().to_dict()!r}')
    common = [str(tmp_path / 'model.pth'), '--key', f'file:{key_file}', '--out', str(tmp_path / 'out')]
    assert main(['unlock', *common, '--config', str(tmp_path / 'plain.py')]) == 1
    assert main(['audit', str(tmp_path / 'plain.py'), *common]) == 1
    torch.save({'state_dict': plain.state_dict()}, tmp_path / 'plain.pth')
    common[0] = str(tmp_path / 'plain.pth')
    transform = f'{spec["type"]}:{spec["block"]}'
    assert main(['lock', *common, '--config', str(tmp_path / 'plain.py'), '--transform', transform]) == 1
    assert not (tmp_path / 'out').exists()
    build_plain_model(read_config(tmp_path / 'plain.py'))  # it is the transform that was refused, not the config


@pytest.mark.parametrize('spec', SPECS, ids=NAMES)
def test_a_keyed_model_with_them(spec, key, key_file, other_key_file, image, tmp_path):
    """Stamp, salt, deepcopy, pickling, the checkpoint's points, wrong keys: as with any transform."""
    cfg = keyed_cfg(tiny_model_cfg(), f'file:{key_file}', transform=spec)
    model = MODELS.build(cfg).eval()
    state = model.state_dict()
    plan = stamps_of(state)['']
    assert [e.transform for e in plan.entries] == [spec] * 4
    assert describe(plan.entries[0].transform) == f'{spec["type"]}(block=2)'
    assert Stamp.from_bytes(plan.to_bytes()) == plan
    with torch.no_grad():
        want = model(image)
        again = MODELS.build(cfg).eval()
        assert not torch.allclose(again(image), want, atol=1e-3)
        again.load_state_dict(state)
        assert torch.equal(again(image), want)
        assert torch.equal(copy.deepcopy(again)(image), want)
        followed = MODELS.build(keyed_cfg(tiny_model_cfg(), f'file:{key_file}', points='checkpoint')).eval()
        followed.load_state_dict(state)
        assert torch.equal(followed(image), want)
        for locator in ('none', 'random:1'):
            other = MODELS.build(keyed_cfg(tiny_model_cfg(), locator, transform=spec)).eval()
            other.load_state_dict(state)
            assert not torch.allclose(other(image), want, atol=1e-3)
    with pytest.raises(KeyMismatchError):
        MODELS.build(keyed_cfg(tiny_model_cfg(), f'file:{other_key_file}', transform=spec)).load_state_dict(state)
    with pytest.raises(SecretExposedError):
        torch.save(model, tmp_path / 'whole.pth')
    with pytest.raises(SecretExposedError):
        torch.jit.trace(model, image, check_trace=False)


@pytest.mark.parametrize('spec', SPECS, ids=NAMES)
def test_their_tables_are_searched_for(spec, key, tmp_path):
    entry = MapEntry('out:backbone:0', 64, spec)
    plan = Stamp(key.id, bytes(16), (entry,))
    for name, table in derive_map(key, plan.salt, entry).tables().items():
        (tmp_path / 'clean.bin').write_bytes(bytes(4096))
        assert find_leaks(tmp_path, key, [plan]) == []
        torch.save({'buffer': torch.from_numpy(table.copy())}, tmp_path / 'planted.pth')
        assert name in str(find_leaks(tmp_path, key, [plan])[0])
        (tmp_path / 'planted.pth').unlink()


@pytest.mark.parametrize('name', NAMES)
def test_tables_are_made_once_per_device_and_dtype(name, monkeypatch):
    t, x = make(name, 16), torch.randn(2, 16, 5, 5)
    t(x)
    made, original = [], torch.from_numpy
    monkeypatch.setattr(torch, 'from_numpy', lambda a: made.append(1) or original(a))
    t(x)
    assert made == []
