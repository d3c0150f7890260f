"""The law of every channel map, over families, dtypes, layouts and layers (others: test_block_transforms.py)."""

from __future__ import annotations

import itertools
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from keyseg_mm.errors import SecretExposedError, TransformError
from keyseg_mm.keys.derive import KeyStream
from keyseg_mm.maps import CHANNEL_MAPS, TRANSFORMS, ChannelRotation, normal_form, order
from keyseg_mm.maps.keyspace import bits_of_orders

NAMES = sorted(CHANNEL_MAPS)
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.05, torch.float16: 5e-3}


def make(name: str, channels: int, seed: int = 0, **params):
    return TRANSFORMS[name].derive(KeyStream(bytes([seed] * 32)), channels, **params)


def close(t, a, b):
    """Exact where the family only moves values, else to rounding."""
    assert a.dtype == b.dtype and a.shape == b.shape
    if t.exact:
        assert torch.equal(a, b)
    else:
        assert torch.allclose(a.double(), b.double(), atol=TOLERANCE[a.dtype], rtol=TOLERANCE[a.dtype])


@settings(deadline=None, max_examples=30)
@given(st.sampled_from(NAMES), st.integers(2, 70), st.integers(0, 3), st.integers(0, 5), st.sampled_from(DTYPES))
def test_inverse_undoes(name, channels, batch, side, dtype):
    t = make(name, channels)
    x = torch.randn(batch, channels, side, side + 1).to(dtype)
    close(t, t.inverse()(t(x)), x)
    close(t, t(t.inverse()(x)), x)
    assert t.inverse().inverse() is t


@pytest.mark.parametrize('name', NAMES)
def test_changes_what_it_maps_and_keeps_its_size(name):
    t, x = make(name, 32), torch.randn(2, 32, 5, 5)
    assert not torch.allclose(t(x), x, atol=0.1)
    assert torch.allclose(t(x).norm(), x.norm(), rtol=1e-5)
    other = make(name, 32, seed=1)
    assert not torch.allclose(other(x), t(x), atol=0.1)
    assert not torch.allclose(other.inverse()(t(x)), x, atol=0.1)


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('channels', [2, 7, 8, 33])
def test_matrix_says_the_same(name, channels):
    t, x = make(name, channels), torch.randn(3, channels, 4, dtype=torch.float64)
    assert torch.allclose(torch.einsum('ij,bjn->bin', t.matrix(), x), t(x, 1), atol=1e-12)
    assert torch.allclose(t.matrix() @ t.matrix().T, torch.eye(channels, dtype=torch.float64), atol=1e-12)


@pytest.mark.parametrize('name', sorted(TRANSFORMS))
@pytest.mark.parametrize('channels', [2, 3, 4, 5])
def test_a_map_of_few_channels_is_never_nearly_none(name, channels):
    """Drawn by chance, every second permutation of two channels would be the identity."""
    params = {'block': 1} if name in ('BlockShuffle', 'NegativePositive') else {}
    x = torch.randn(1, channels, 4, 4)
    shares = []
    for seed in range(60):
        t = make(name, channels, seed, **params)
        shares.append(float((t(x)[0, :, 0, 0] != x[0, :, 0, 0]).float().mean()))
        assert torch.allclose(t.inverse()(t(x)), x, atol=1e-5)
    assert min(shares) >= max(1, channels // 2) / channels
    assert torch.equal(make(name, channels, 7, **params)(x), make(name, channels, 7, **params)(x))


@pytest.mark.parametrize('name', sorted(TRANSFORMS))
def test_a_single_value_has_no_map(name):
    with pytest.raises(TransformError, match='single channel'):
        make(name, 1, **({'block': 1} if name in ('BlockShuffle', 'NegativePositive') else {}))


@pytest.mark.parametrize('forms', [1, 2])
@pytest.mark.parametrize('n', [2, 3, 4, 5])
def test_maps_of_few_channels_are_counted_as_they_are_drawn(n, forms):
    every = itertools.product(itertools.permutations(range(n)), itertools.product(range(forms), repeat=n))
    changed = [sum(place != at or form for at, (place, form) in enumerate(zip(*one))) for one in every]
    assert 2 ** bits_of_orders(n, forms) == pytest.approx(sum(count >= max(1, n // 2) for count in changed))


@pytest.mark.parametrize('first', NAMES)
@pytest.mark.parametrize('then', NAMES)
def test_composition(first, then):
    a, b, x = make(first, 24), make(then, 24, seed=1), torch.randn(2, 24, 3, 3)
    both = b.compose(a)
    close(both, both(x), b(a(x)))
    assert torch.allclose(both.inverse()(both(x)), x, atol=1e-5)
    assert torch.allclose(a.inverse().compose(a)(x), x, atol=1e-5)
    if first == then and both.exact:
        assert type(both) is type(a)
    with pytest.raises(TransformError):
        make(then, 25).compose(a)


@pytest.mark.parametrize('name', NAMES)
def test_gradient_goes_back_through_the_inverse(name):
    t = make(name, 9)
    x = torch.randn(2, 9, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: t(v), x)
    assert torch.autograd.gradgradcheck(lambda v: t(v).pow(3), x)
    y, g = t(x), torch.randn(2, 9, 3, 3, dtype=torch.float64)
    y.backward(g)
    close(t, x.grad, t.inverse()(g))


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('dim', [1, -1, 2])
def test_tokens_and_other_dimensions(name, dim):
    t, x = make(name, 12), torch.randn(2, 12, 12, 12)
    moved = t(x.movedim(dim, 1).contiguous(), 1).movedim(1, dim)
    assert torch.allclose(t(x, dim), moved, atol=1e-6)


@pytest.mark.parametrize('name', NAMES)
def test_layouts(name):
    t, x = make(name, 16), torch.randn(2, 16, 6, 8)
    want = t(x)
    last = t(x.to(memory_format=torch.channels_last))
    assert last.is_contiguous(memory_format=torch.channels_last)
    strided = torch.randn(2, 16, 6, 16)[..., ::2]
    strided.copy_(x)
    assert not strided.is_contiguous()
    for got in (last, t(strided)):
        assert torch.allclose(got, want, atol=1e-6)


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_autocast_changes_nothing(name, dtype):
    t, x = make(name, 16), torch.randn(2, 16, 4, 4)
    want = t(x)
    with torch.autocast('cpu', dtype=dtype):
        assert torch.equal(t(x), want)
        low = nn.Conv2d(16, 16, 1)(x)
        assert low.dtype == dtype and t(low).dtype == dtype
        assert torch.allclose(t.inverse()(t(low)).float(), low.float(), atol=0.05)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU here')
@pytest.mark.parametrize('name', NAMES)
def test_gpu_says_the_same(name):
    t, x = make(name, 16), torch.randn(2, 16, 4, 4)
    assert torch.allclose(t(x.cuda()).cpu(), t(x), atol=1e-5)


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize(
    'layer',
    [
        nn.Conv2d(16, 5, 3, padding=1),
        nn.Conv2d(16, 5, (3, 1), stride=2, dilation=2, bias=False),
        nn.Linear(16, 5),
    ],
    ids=['conv', 'strided dilated conv', 'linear'],
)
def test_a_linear_layer_can_absorb_it(name, layer):
    """``(W T^-1)(T x) = W x``: the one idea of the design, for the layers that can carry it."""
    t = make(name, 16)
    x = torch.randn(2, 16, 9, 9) if isinstance(layer, nn.Conv2d) else torch.randn(2, 9, 16)
    dim = 1 if isinstance(layer, nn.Conv2d) else -1
    plain = layer(x)
    kept = layer.weight.data
    layer.weight.data = t(kept, 1)  # W T^-1 = W T^T: T along the input channels of W
    try:
        assert not torch.allclose(layer(x), plain, atol=1e-2)
        assert torch.allclose(layer(t(x, dim)), plain, atol=1e-5)
    finally:
        layer.weight.data = kept


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('dtype', DTYPES, ids=str)
@pytest.mark.parametrize('shape', [(21, 6, 3, 3), (64, 6), (5, 6, 1, 1), (24, 6, 2)], ids=str)
def test_weights_are_carried_in_parts_as_they_are_whole(name, dtype, shape, monkeypatch):
    t = make(name, 6)
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    close(t, t.carry(weight), t(weight, 1))
    monkeypatch.setattr(order, '_BLOCK', 1)
    assert [len(rows) for rows in order.blocks(weight)][:2] in ([8, 8], [5])
    whole, last = t(weight, 1), weight.transpose(0, -1).contiguous().transpose(0, -1)
    assert not torch.equal(whole, weight) and (weight.dim() < 3 or not last.is_contiguous())
    for source in (weight, last):
        close(t, t.carry(source), whole)
        place = source.clone()
        assert t.carry(place, place) is place
        close(t, place, whole)
    close(t, torch.cat([t.by_rows(weight)(rows) for rows in order.blocks(weight)]), whole)
    empty = weight[:0]
    assert t.carry(empty).shape == empty.shape


def test_tables_are_made_once_per_device_and_dtype(monkeypatch):
    t, x = make('SignedChannelPermutation', 16), torch.randn(2, 16, 4, 4)
    t(x)
    made = []
    original = torch.from_numpy
    monkeypatch.setattr(torch, 'from_numpy', lambda a: made.append(1) or original(a))
    for _ in range(3):
        t(x)
    assert made == []
    t(x.double())
    assert made


@pytest.mark.parametrize('name', NAMES)
def test_maps_are_secrets(name):
    t = make(name, 300)
    with pytest.raises(SecretExposedError):
        pickle.dumps(t)
    values = next(iter(t.tables().values())).ravel()
    assert len(repr(t)) < 80
    assert not hasattr(t, '__dict__')
    assert str(np.round(values[0], 3)) not in repr(t).replace('300', '')


def test_bad_use_is_refused():
    with pytest.raises(TransformError, match='16 channels met 8'):
        make('ChannelPermutation', 16)(torch.randn(1, 8, 2, 2))
    for spec in (
        'NoSuch',
        None,
        {'type': 'ChannelPermutation', 'block': 4},
        {'type': 'ChannelRotation', 'block': 1},
        {'type': 'ChannelRotation', 'block': 'x'},
    ):
        with pytest.raises(TransformError):
            normal_form(spec)
    assert normal_form('ChannelRotation') == {'type': 'ChannelRotation'}


def test_rotation_block_size_counts():
    x = torch.randn(1, 32, 2, 2)
    small, large = ChannelRotation.derive(KeyStream(bytes(32)), 32, block=2), make('ChannelRotation', 32)
    assert (small.matrix() != 0).sum() == 32 * 2
    assert not torch.allclose(small(x), large(x), atol=0.1)


@pytest.mark.parametrize('name', NAMES)
def test_an_in_place_operation_may_follow(name):
    """A host's ReLU works in place on what an encryptor hands on, in either layout, and gradients still come back."""
    t, x = make(name, 16), torch.randn(2, 16, 6, 8)
    for layout in (torch.contiguous_format, torch.channels_last):
        leaf = x.clone(memory_format=layout).requires_grad_()
        y = torch.relu_(t(leaf))
        y.sum().backward()
        want = t.inverse()((y > 0).to(x.dtype))
        assert want.abs().sum() > 0
        assert torch.allclose(leaf.grad, want, atol=1e-5)


@pytest.mark.parametrize('name', ['ChannelPermutation', 'SignedChannelPermutation'])
def test_transposed_tokens_keep_their_strides(name):
    t, x = make(name, 16), torch.randn(2, 16, 48)
    tokens = x.transpose(1, 2)
    assert not tokens.is_contiguous()
    assert t(tokens, -1).stride() == tokens.stride()
    assert torch.equal(t(tokens, -1), t(tokens.contiguous(), -1))
