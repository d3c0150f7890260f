"""Whole models that are locked, rekeyed and unlocked, on state_dicts and in memory."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from mmseg.registry import MODELS

from keyseg_mm import lock, plan_lock, protections, rekey, stamps_of, unlock, unlock_model
from keyseg_mm.bind import stamp_tensor
from keyseg_mm.envelope import MODES, SEALED
from keyseg_mm.errors import (
    IntegrityError,
    KeyMismatchError,
    LockError,
    NotFiredError,
    PlainCheckpointError,
)
from keyseg_mm.mm import dryrun
from keyseg_mm.mm.dryrun import trace_module
from keyseg_mm.model import passes
from keyseg_mm.model.sites import resolve
from keyseg_mm.seal.sections import Sealing, seal_checkpoint
from tests.support.configs import keyed_cfg, tiny_model_cfg

SALT = bytes(range(16))
TRANSFORMS = ['ChannelPermutation', 'SignedChannelPermutation', 'ChannelRotation']
IMAGE = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def logits(model):
    return model.eval().encode_decode(IMAGE, [dict(img_shape=(64, 64), ori_shape=(64, 64))] * 2).detach()


def loaded(plain, locator, state, **protection):
    model = MODELS.build(keyed_cfg(tiny_model_cfg(), locator, **protection))
    model.load_state_dict(state)
    return model


@pytest.mark.parametrize('how', [dict(points='checkpoint'), dict(runtime='plain'), dict(points='linear')])
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
    assert (calls == 0) == (how.get('runtime') == 'plain')


def test_what_was_unlocked_in_memory_is_the_plain_model(plain, key, key_file):
    locked = lock(plain.state_dict(), plain, key)
    model = loaded(plain, f'file:{key_file}', locked, runtime='plain')
    assert torch.equal(logits(model), logits(plain))
    state = model.state_dict()
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
    back = unlock(state, key)
    assert not torch.equal(back['decode_head.convs.0.conv.weight'], state['decode_head.convs.0.conv.weight'])
    plain.load_state_dict(back)
    assert torch.allclose(logits(plain), expected, rtol=1e-4, atol=1e-5)
    memory = loaded(plain, f'file:{key_file}', state, runtime='plain')
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
        loaded(plain, f'file:{key_file}', plain.state_dict(), runtime='plain')
    empty = MODELS.build(keyed_cfg(tiny_model_cfg(), f'file:{key_file}', points='checkpoint'))
    assert not stamps_of(empty.state_dict())
    with pytest.raises(NotFiredError, match='no protected checkpoint was loaded'):
        empty(IMAGE, mode='tensor')
    empty.load_state_dict(locked)
    assert torch.allclose(empty.eval()(IMAGE, mode='tensor'), plain(IMAGE, mode='tensor'), atol=1e-4)


@pytest.mark.parametrize('how', [dict(points='checkpoint'), dict(runtime='plain')])
@pytest.mark.parametrize('mode', MODES)
def test_one_altered_bit_of_a_file_is_found(plain, key, other_key, key_file, how, mode):
    """In memory nothing is signed: the host's EMA computes with state_dicts. What files hold is, sealed or not."""

    def altered():
        locked = lock(plain.state_dict(), plain, key)
        content = seal_checkpoint({'state_dict': locked}, Sealing(key, mode=mode))['state_dict']
        content['decode_head.conv_seg.bias'] = flipped(content['decode_head.conv_seg.bias'])
        return content

    for use in (unlock, lambda state, key: rekey(state, key, other_key)):
        with pytest.raises(IntegrityError, match='decode_head.conv_seg.bias in state_dict was altered'):
            use(altered(), key)
    with pytest.raises(IntegrityError, match='decode_head.conv_seg.bias in state_dict was altered'):
        loaded(plain, f'file:{key_file}', altered(), **how)
    if mode == SEALED:
        with pytest.raises(IntegrityError):
            loaded(plain, f'file:{key_file}', altered(), verify=False, **how)
        with pytest.raises(IntegrityError):
            unlock(altered(), key, check=False)
        return
    model = loaded(plain, f'file:{key_file}', altered(), verify=False, **how)
    assert torch.allclose(logits(model), logits(plain), atol=1e-4)
    assert unlock(altered(), key, check=False).keys() == plain.state_dict().keys()


def flipped(tensor):
    """A copy with another last bit in its first value."""
    tensor = tensor.clone()
    tensor.view(torch.int32)[0] ^= 1
    return tensor


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('how', [dict(points='checkpoint'), dict(runtime='plain')])
def test_nothing_of_an_altered_sealed_file_is_left_in_a_model(plain, key, key_file, how, mode):
    locked = lock(plain.state_dict(), plain, key)
    content = seal_checkpoint({'state_dict': locked}, Sealing(key, mode=mode))['state_dict']
    model = MODELS.build(keyed_cfg(tiny_model_cfg(), f'file:{key_file}', **how))
    before = {n: v.clone() for n, v in model.named_parameters()}
    content['decode_head.conv_seg.bias'] = flipped(content['decode_head.conv_seg.bias'])
    with pytest.raises(IntegrityError):
        model.load_state_dict(content)
    for name, value in model.named_parameters():
        assert not value.any() if mode == SEALED else torch.equal(value, before[name]), name


def test_a_stamp_without_an_envelope_is_refused(plain, key):
    locked = lock(plain.state_dict(), plain, key)
    ((name, stamp),) = ((found.name, found) for found in stamps_of(locked).values())
    assert stamp.recipients and stamp.commitment
    bare = {**locked, name: stamp_tensor(replace(stamp, recipients=(), commitment=''))}
    with pytest.raises(IntegrityError, match='without an envelope'):
        unlock(bare, key)
    assert unlock(bare, key, check=False).keys() == plain.state_dict().keys()


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


def test_preset_points_resolve_alike(plain):
    """A config that says `linear` meets the plan of the default lock."""
    trace = trace_module(plain)
    sites = resolve('linear', plain, trace)
    assert [str(s.point) for s in sites] == [e.point for e in plan_lock(plain, trace=trace).entries]


@pytest.mark.parametrize('made', ['locked', 'trained'])
def test_a_stamp_is_followed_without_a_run(plain, key, key_file, made, monkeypatch):
    """It says of each point where its channels are, and in which passes it fires."""
    if made == 'locked':
        state = lock(plain.state_dict(), plain, key)
    else:
        state = MODELS.build(keyed_cfg(tiny_model_cfg(), f'file:{key_file}')).state_dict()
    named = resolve([e.point for e in stamps_of(state)[''].maps], plain, trace_module(plain))
    for module, name in ((dryrun, 'watch_module'), (passes, '_WATCHERS')):
        monkeypatch.setattr(module, name, None)
    model = loaded(plain, f'file:{key_file}', state, points='checkpoint')
    found = [encryptor.site for encryptor in protections(model)[0].encryptors]
    assert len(found) > 1
    assert [replace(site, shape=()) for site in named] == found
    assert {site.dim for site in found} == {1} and ('train',) in [site.runs for site in found] or made == 'trained'
