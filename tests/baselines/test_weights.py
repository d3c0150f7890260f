"""The laws of encrypted weights: which values are moved, that no bit of them changes, and that nothing else does."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmseg.registry import MODELS
from torch import nn

from keyseg_mm import lock, rekey, stamps_of, unlock
from keyseg_mm.baselines.parameters import sensitivity
from keyseg_mm.bind import Bound, derive_order, digest, licensee_salt, stamp_tensor
from keyseg_mm.cli import lock as command
from keyseg_mm.entries import TensorEntry
from keyseg_mm.envelope import SIGNED
from keyseg_mm.errors import (
    IntegrityError,
    KeyMismatchError,
    LockError,
    PlanMismatchError,
    PointError,
    StampError,
    TransformError,
)
from keyseg_mm.locking import SCHEMES
from keyseg_mm.locking import proof as proofs
from keyseg_mm.maps.order import ValueOrder, fitting, magnitudes, places, raw
from keyseg_mm.mm.bench import HostBench
from keyseg_mm.runtime.leaks import Needles
from keyseg_mm.seal.sections import Sealing, seal_checkpoint
from keyseg_mm.tracing import PLAIN, by_stamp, by_weights
from keyseg_mm.wrapping import memory_stamp
from tests.support.configs import keyed_cfg, tiny_model_cfg

SALT = bytes(range(16))
ALL, SOME = {'type': 'TensorPermutation'}, {'type': 'SelectiveEncryption', 'share': 0.05}
EACH = pytest.mark.parametrize('scheme', ['tensors', 'selective'])
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


@pytest.fixture(scope='module')
def model():
    """The tiny model with norms as a training leaves them: no two values alike."""
    torch.manual_seed(0)
    model = MODELS.build(tiny_model_cfg())
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for value in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
                value.uniform_(0.5, 1.5)
    return model.eval()


@pytest.fixture(scope='module')
def scores(model):
    return sensitivity(model, model.state_dict())


@pytest.fixture
def options(request, scores):
    """Those of the scheme that a test is run with."""
    return {'share': 0.05, 'scores': scores} if request.getfixturevalue('scheme') == 'selective' else {}


def lock_all(state, model, key, salt=None):
    return lock(state, model, key, scheme='tensors', salt=salt)


def plan_some(model, state, **options):
    return SCHEMES['selective'].plan(model, state, **options)


def moved(state, locked):
    return {n for n, value in state.items() if 'keyseg' not in n and not torch.equal(value, locked[n])}


def same(one, other):
    return list(one) == list(other) and all(
        t.dtype == other[n].dtype and t.shape == other[n].shape and digest(t) == digest(other[n])
        for n, t in one.items()
    )


def bits(tensor):
    return raw(tensor).sort().values


# ---- which values


@st.composite
def tensors(draw):
    """Values with many ties, both zeros, infinities and NaN among them."""
    dtype = draw(st.sampled_from([*DTYPES, torch.float8_e4m3fn]))
    some = [0.0, -0.0, 1.0, -1.0, 2.5, math.inf, -math.inf, math.nan, 1e-7]
    values = draw(st.lists(st.one_of(st.sampled_from(some), st.floats(-3, 3)), min_size=2, max_size=40))
    return torch.tensor(values, dtype=torch.float64).to(dtype)


@given(tensors(), st.floats(0, 1), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_the_places_are_the_same_after_the_values_moved(tensor, share, random):
    values = raw(tensor)
    count = fitting(tensor, int(share * len(values)))
    assert count <= max(int(share * len(values)), 0) or count == len(values)
    if count < 1:
        return
    where = places(values, count)
    assert len(where) == count and (where[1:] > where[:-1]).all()
    rest = magnitudes(values)[[i not in where.tolist() for i in range(len(values))]]
    assert not len(rest) or rest.max() < magnitudes(values)[where].min()
    shuffled = values.clone()
    shuffled[where] = values[where[random.sample(range(count), count)]]
    assert torch.equal(places(shuffled, count), where)


def test_equal_magnitudes_are_all_taken_or_all_left():
    tensor = torch.tensor([3.0, -1.0, 1.0, 0.5, -3.0, 1.0])
    assert [fitting(tensor, count) for count in range(8)] == [0, 0, 2, 2, 2, 5, 6, 6]
    assert places(raw(tensor), 2).tolist() == [0, 4]
    assert places(raw(tensor), 3) is None
    assert fitting(torch.ones(9), 8) == 0


@pytest.mark.parametrize('dtype', [*DTYPES, torch.float8_e5m2])
def test_magnitudes_are_ordered_as_the_values(dtype):
    tensor = torch.cat([torch.linspace(-4, 4, 301), torch.tensor([math.inf, -math.inf])]).to(dtype)
    order = magnitudes(raw(tensor)).long().argsort(stable=True)
    assert torch.equal(order, tensor.double().abs().argsort(stable=True))


def test_selection_takes_a_share_of_the_model_by_sensitivity(model, scores):
    state = model.state_dict()
    values = sum(t.numel() for t in state.values() if t.is_floating_point())
    buffers = {n for n, _ in model.named_buffers()}
    for share in (0.005, 0.05, 0.2):
        plan = plan_some(model, state, share=share, scores=scores)
        assert 0.9 * share * values < sum(t.count for t in plan.entries) <= share * values
        assert not buffers & {n for t in plan.entries for n in t.names}
        assert {t.transform['share'] for t in plan.entries} == {share}
    only = {n: torch.zeros_like(s) for n, s in scores.items()} | {
        'decode_head.conv_seg.weight': torch.ones(19, 16, 1, 1)
    }
    plan = plan_some(model, state, share=0.05, scores=only)
    assert [(t.names, t.count) for t in plan.entries] == [(('decode_head.conv_seg.weight',), 19 * 16)]
    with pytest.raises(LockError, match='larger share'):
        plan_some(model, state, share=1e-9, scores=scores)


def test_the_share_and_the_sensitivity_are_found_where_they_are_not_given(model, scores):
    state = model.state_dict()
    by_default = plan_some(model, state)
    assert by_default.entries[0].transform == {'type': 'SelectiveEncryption'}
    counts, others = (
        {t.names: t.count for t in plan.entries}
        for plan in (by_default, plan_some(model, state, share=0.02, scores=scores))
    )
    assert counts != others
    assert counts == {t.names: t.count for t in plan_some(model, state, share=0.01, scores=scores).entries}


@pytest.mark.parametrize('share', [0, -1, 1.5, 'x', True, math.nan])
def test_bad_shares(model, share):
    with pytest.raises(TransformError, match='share'):
        plan_some(model, model.state_dict(), share=share)


def test_options_of_another_scheme(model, key):
    state = model.state_dict()
    for scheme, name in (('tensors', 'share'), ('tensors', 'scores'), ('selective', 'permute')):
        with pytest.raises(TransformError, match=f'takes no {name!r}'):
            lock(state, model, key, scheme=scheme, **{name: 0.1})
    for where in ({'points': 'linear'}, {'transform': 'ChannelPermutation'}):
        with pytest.raises(LockError, match='takes no points and no transform'):
            lock(state, model, key, scheme='tensors', **where)
    with pytest.raises(LockError, match="no scheme 'all'; there are features, .*tensors, selective, patches"):
        lock(state, model, key, scheme='all')


def test_sensitivity_looks_at_frozen_weights_too_and_changes_nothing(model):
    state = {n: t.clone() for n, t in model.state_dict().items()}
    model.backbone.conv1.weight.requires_grad_(False)
    try:
        random = torch.get_rng_state()
        found = sensitivity(model, state)
        assert not model.backbone.conv1.weight.requires_grad
    finally:
        model.backbone.conv1.weight.requires_grad_(True)
    assert torch.equal(random, torch.get_rng_state())
    assert same(model.state_dict(), state) and all(p.grad is None for p in model.parameters())
    parameters = dict(model.named_parameters())
    assert all(s.shape == parameters[n].shape and (s >= 0).all() for n, s in found.items())
    assert found['backbone.conv1.weight'].max() > 0
    assert not any(n.startswith('auxiliary_head') for n in found), 'the output does not depend on it'


# ---- the laws


@EACH
@pytest.mark.parametrize('dtype', DTYPES)
def test_unlocking_gives_every_bit_back(model, scheme, options, dtype, key, other_key):
    state = {n: t.to(dtype) if t.is_floating_point() else t for n, t in model.state_dict().items()}
    before = {n: t.clone() for n, t in state.items()}
    locked = lock(state, model, key, scheme=scheme, salt=SALT, **options)
    entries = stamps_of(locked)[''].tensors
    listed, long = ({n for t in entries if t.count >= least for n in t.names} for least in (2, 12))
    assert len(long) > (30 if scheme == 'selective' else 90)
    rekeyed = rekey(locked, key, other_key, salt=SALT)
    for one, other in ((state, locked), (locked, rekeyed), (state, rekeyed)):
        # the order of a handful of values may by chance be the one that they had
        assert long <= moved(one, other) <= listed
        assert all(torch.equal(bits(one[n]), bits(other[n])) for n in listed), 'the distribution is kept'
    again = lock(state, model, key, scheme=scheme, **options)
    assert moved(locked, again), 'another salt, another order'
    for back in (unlock(locked, key), unlock(rekeyed, other_key)):
        assert same(back, before)
    assert same(state, before), 'the input changed'


def test_all_values_of_all_tensors_are_moved(model, key):
    locked = lock_all(model.state_dict(), model, key, SALT)
    floats = {n: t for n, t in model.state_dict().items() if t.is_floating_point()}
    assert {n: t.numel() for n, t in floats.items()} == {t.names[0]: t.count for t in stamps_of(locked)[''].tensors}
    assert moved(model.state_dict(), locked) == set(floats)


def test_rekeying_makes_no_plain_weights(model, key, other_key, monkeypatch):
    state = model.state_dict()
    locked = lock_all(state, model, key)
    made, carry = [], ValueOrder.carry
    monkeypatch.setattr(ValueOrder, 'carry', lambda *args: made.append(carry(*args)) or made[-1])
    rekey(locked, key, other_key)
    plain = {digest(t) for t in state.values()}
    assert len(made) == len(stamps_of(locked)[''].tensors)
    assert not plain & {digest(t) for t in made}


class Odd(nn.Module):
    """A module of one parameter, and of entries that are left alone."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 5))
        self.tied = self.weight
        self.scale = nn.Parameter(torch.ones(1))
        self.register_buffer('steps', torch.tensor(3))
        self.register_buffer('index', torch.arange(20))
        self.register_buffer('mask', torch.rand(20) > 0.5)
        self.register_buffer('phase', torch.randn(20, dtype=torch.complex64))
        self.register_buffer('empty', torch.empty(0))


def test_what_is_left_alone_and_names_of_one_tensor(key, other_key, tmp_path):
    odd = Odd()
    state = odd.state_dict()
    plan = SCHEMES['tensors'].plan(odd, state)
    assert [t.names for t in plan.entries] == [('weight', 'tied')]
    assert set(plan.left_out) == {'scale', 'steps', 'index', 'mask', 'phase', 'empty'}
    locked = lock_all(state, odd, key)
    assert moved(state, locked) == {'weight', 'tied'}
    rekeyed = rekey(locked, key, other_key)
    for changed in (locked, rekeyed, unlock(locked, key)):
        assert changed['weight'].data_ptr() == changed['tied'].data_ptr()
    apart = {n: t.clone() for n, t in state.items()}  # as a .safetensors file has them
    assert same(unlock(lock_all(apart, odd, key), key), apart)
    sparse = {**state, 'weight': state['weight'].to_sparse()}
    assert 'weight' in SCHEMES['tensors'].plan(odd, {**sparse, 'more': torch.ones(2)}).left_out


def test_strange_values_and_layouts_keep_their_bits(key):
    odd = Odd()
    state = odd.state_dict()
    values = torch.randn(30)
    values.view(torch.int32)[:4] = torch.tensor([0x7FC00001, -0x3FFFFF, 0x7F800001, -0x80000000], dtype=torch.int32)
    strange = values.reshape(5, 6).t()
    assert not strange.is_contiguous() and strange.isnan().sum() == 3
    state = {**state, 'weight': strange, 'tied': strange}
    locked = lock_all(state, odd, key)
    assert digest(locked['weight']) != digest(strange)
    assert digest(unlock(locked, key)['weight']) == digest(strange)


def test_every_input_of_an_order_counts(key, other_key):
    entry = TensorEntry(('a.weight', 'b.weight'), 50, ALL)
    others = [
        derive_order(key, SALT, entry),
        derive_order(other_key, SALT, entry),
        derive_order(key, SALT[::-1], entry),
        derive_order(key, SALT, dataclasses.replace(entry, names=('b.weight',))),
        derive_order(key, SALT, dataclasses.replace(entry, transform=SOME)),
        derive_order(key, SALT, dataclasses.replace(entry, count=51)),
    ]
    assert len({tuple(order.tolist()[:20]) for order in others}) == len(others)
    assert all(sorted(order.tolist()) == list(range(len(order))) for order in others)
    first = derive_order(key, SALT, dataclasses.replace(entry, names=('a.weight',)))
    assert np.array_equal(first, others[0]), 'the first name alone counts'


def test_maps_compose_and_undo_themselves(key):
    one, two = (ValueOrder(9, lambda n=n: derive_order(key, SALT, TensorEntry((n,), 9, {}))) for n in 'ab')
    weight = torch.randn(3, 3)
    assert not torch.equal(one.carry(weight), weight)
    assert torch.equal(two.compose(one).carry(weight), two.carry(one.carry(weight)))
    assert torch.equal(two.compose(one).inverse().carry(two.carry(one.carry(weight))), weight)
    assert torch.equal(one.inverse().inverse().carry(weight), one.carry(weight))
    assert '9 values' in repr(one)


# ---- keys, damage, stamps


@EACH
def test_wrong_keys_and_altered_files(model, scheme, options, key, other_key):
    locked = lock(model.state_dict(), model, key, scheme=scheme, **options)
    with pytest.raises(KeyMismatchError, match=f'{key.id}.*{other_key.id}'):
        unlock(locked, other_key)
    with pytest.raises(LockError, match='protected already'):
        lock(locked, model, key, scheme=scheme)
    name = 'decode_head.conv_seg.weight'
    sealed = seal_checkpoint({'state_dict': locked}, Sealing(key))['state_dict']
    altered = {**sealed, name: sealed[name].clone()}
    altered[name].view(-1).view(torch.int32)[3] ^= 1
    for use in (lambda: unlock(altered, key), lambda: rekey(altered, key, other_key)):
        with pytest.raises(IntegrityError, match='altered'):
            use()
    gone = {n: t for n, t in locked.items() if n != stamps_of(locked)[''].tensors[-1].names[0]}
    with pytest.raises(LockError, match='floating-point tensor of'):
        unlock(gone, key, check=False)


def test_a_cast_of_selected_weights_is_found_out(key):
    """Rounding makes equal what was not: the places are not certain any more, and a wrong guess is not made."""
    odd = Odd()
    odd.weight.data = torch.cat([1 + torch.arange(15) * 1e-6, torch.rand(15) / 2]).reshape(6, 5)
    score = {'weight': torch.cat([torch.ones(10), torch.zeros(20)]).reshape(6, 5)}
    locked = lock(odd.state_dict(), odd, key, scheme='selective', share=0.5, scores=score)
    assert stamps_of(locked)[''].tensors[0].count == 10
    signed = seal_checkpoint({'state_dict': locked}, Sealing(key, mode=SIGNED))['state_dict']
    cast = {n: t.half() if t.is_floating_point() else t for n, t in signed.items()}
    with pytest.raises(IntegrityError):
        unlock(cast, key)
    with pytest.raises(LockError, match='cast to another dtype'):
        unlock(cast, key, check=False)


def test_an_order_that_a_later_release_knows_is_refused_before_anything_is_changed(model, key, other_key, key_file):
    locked = lock_all(model.state_dict(), model, key)
    stamp = stamps_of(locked)['']
    later = dataclasses.replace(stamp.tensors[-1], transform={'type': 'BlockOrder', 'block': 2})
    entries = (*stamp.tensors[:-1], later)
    newer = memory_stamp(key, dataclasses.replace(stamp, entries=entries), key.features(stamp.salt))
    locked[stamp.name] = stamp_tensor(newer)
    opened = MODELS.build(keyed_cfg(tiny_model_cfg(), f'file:{key_file}', runtime='plain'))
    before = {n: p.clone() for n, p in opened.named_parameters()}
    for use in (
        lambda: unlock(locked, key),
        lambda: rekey(locked, key, other_key),
        lambda: opened.load_state_dict(dict(locked)),
    ):
        with pytest.raises(StampError, match=r'BlockOrder\(block=2\).*install a newer keyseg_mm'):
            use()
    assert all(torch.equal(p, before[n]) for n, p in opened.named_parameters())


# ---- the proof


def proved(model, plan, key, bench):
    return SCHEMES[plan.scheme].prove(bench, model, model.state_dict(), plan, key, SALT)


@EACH
def test_the_proof_finds_a_difference_without_the_key(model, scheme, options, key):
    before = {n: t.clone() for n, t in model.state_dict().items()}
    proof = proved(model, SCHEMES[scheme].plan(model, before, **options), key, HostBench())
    (none,) = proof.without.values()
    assert proof.with_key is None, 'the weights come back bit for bit'
    assert not none.is_the_same and none.error > 0.1
    assert same(model.state_dict(), before)


def test_the_proof_takes_no_number_for_a_difference():
    assert proofs._relative_error(torch.ones(3), torch.tensor([1.0, math.nan, 1.0])) == math.inf
    assert math.isnan(proofs._relative_error(torch.tensor([math.nan]), torch.tensor([math.nan])))


def test_the_proof_takes_a_model_that_does_not_run_for_protected(model, key):
    conv = model.backbone.conv1.weight.clone()

    class Bench(HostBench):
        def run(self, found, *args, **kwargs):
            if not torch.equal(found.backbone.conv1.weight, conv):
                raise PointError('it does not run')
            return super().run(found, *args, **kwargs)

    plan = SCHEMES['tensors'].plan(model, model.state_dict())
    assert proved(model, plan, key, Bench()).without['without it'].error == math.inf


def test_the_proof_finds_weights_that_do_not_come_back(model, key, monkeypatch):
    scheme = SCHEMES['tensors']
    carry = type(scheme).carry

    def forget(self, tensors, prefix, before, after, own=False):
        carry(self, tensors, prefix, before, after, own)
        if after is None:
            tensors['backbone.conv1.weight'] = torch.ones(8, 3, 7, 7)

    plan = scheme.plan(model, model.state_dict())
    monkeypatch.setattr(type(scheme), 'carry', forget)
    with pytest.raises(LockError, match='did not come back.*conv1'):
        proved(model, plan, key, HostBench())


def test_the_proof_refuses_what_changes_nothing(model, key):
    (entry, *_) = SCHEMES['tensors'].plan(model, model.state_dict()).entries
    unread = 'auxiliary_head.convs.0.conv.weight'  # in training alone
    count = model.get_parameter(unread).numel()
    plan = SCHEMES['tensors'].plan(model, model.state_dict())
    nothing = dataclasses.replace(plan, entries=(dataclasses.replace(entry, names=(unread,), count=count),))
    with pytest.raises(LockError, match='nothing would be protected'):
        proved(model, nothing, key, HostBench())


# ---- licensees


@EACH
def test_a_licensees_copy_is_traced(model, scheme, options, key):
    state = model.state_dict()
    names = ['ACME Ltd', 'Bolt']
    locked = lock(state, model, key, scheme=scheme, **options)
    copy = rekey(locked, key, key.licensee('Bolt'), salt=licensee_salt(key, 'Bolt', locked))
    again = rekey(copy, key.licensee('Bolt'), key.licensee('Bolt'), salt=licensee_salt(key, 'Bolt', copy))
    assert stamps_of(copy) == stamps_of(again)
    assert same(*({n: t for n, t in found.items() if n in state} for found in (copy, again))), (
        'the salt comes out the same from any protected version'
    )
    assert licensee_salt(key, 'Bolt', state, encrypted=True) == stamps_of(copy)[''].salt
    assert licensee_salt(key, 'Bolt', state) != stamps_of(copy)[''].salt
    assert by_stamp(copy, key, names) == ('Bolt', True)

    found = {n: t for n, t in copy.items() if n in state}
    torch.manual_seed(0)
    tuned = {n: t + 0.2 * t.std() * torch.randn_like(t) if t.dim() > 1 else t for n, t in found.items()}
    originals = [locked] if scheme == 'selective' else [locked, state]
    for original in originals:
        best = by_weights(tuned, original, key, names)[0]
        assert best.name == 'Bolt' and best.is_certain, (best, original is state)
        best = by_weights(state, original, key, names)[0]
        assert best.name == PLAIN and best.score > 0.99
    assert by_weights(found, locked, key, names)[0].score > 0.99
    assert not by_weights(found, locked, key, ['ACME Ltd'])[0].is_certain


def test_trace_tells_another_model(model, key):
    locked = lock_all(model.state_dict(), model, key)
    with pytest.raises(LockError, match='another model'):
        by_weights({'x': torch.ones(3)}, locked, key, ['Bolt'])


# ---- secrets


def test_orders_are_looked_for(model, key):
    plan = stamps_of(lock_all(model.state_dict(), model, key))['']
    plan = dataclasses.replace(plan, entries=plan.tensors[:3], recipients=(), commitment='')
    needles = Needles(key, [plan])
    order = Bound(key, plan).value_orders()[plan.tensors[0].names[0]].order()
    assert not needles.search('here', np.arange(1000).tobytes())
    assert 'the order of the values of backbone.conv1.weight' in str(needles.search('here', order.tobytes())[0])


def test_a_loaded_model_is_refused_without_unlock(model, key, key_file):
    locked = lock_all(model.state_dict(), model, key)
    for how in ({'points': 'checkpoint'}, {'points': 'stages'}):
        keyed = MODELS.build(keyed_cfg(tiny_model_cfg(), f'file:{key_file}', **how))
        before = {n: t.clone() for n, t in keyed.state_dict().items() if 'keyseg' not in n}
        with pytest.raises(PlanMismatchError, match="TensorPermutation.*protection.runtime='plain'"):
            keyed.load_state_dict(dict(locked))
        assert same({n: t for n, t in keyed.state_dict().items() if n in before}, before)


def test_the_envelope_covers_what_is_moved(model, key):
    locked = lock_all(model.state_dict(), model, key)
    plan = stamps_of(locked)['']
    forged = {**locked, plan.name: stamp_tensor(dataclasses.replace(plan, entries=plan.tensors[1:]))}
    with pytest.raises(IntegrityError):
        unlock(forged, key)


def test_the_command_knows_all_schemes():
    assert set(command.SCHEMES) == set(SCHEMES) - {'images'}, 'no trained model can be made to read those'
