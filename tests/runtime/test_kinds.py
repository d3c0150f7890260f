"""Files and state_dicts that tools have cast, averaged, thinned, copied or sharded: they work, or say why not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from mmengine.model import ExponentialMovingAverage
from mmseg.registry import MODELS
from torch import nn

from keyseg_mm import Sealing, protections, stamps_of
from keyseg_mm.errors import IntegrityError, PlanMismatchError, StampError
from keyseg_mm.seal.sections import seal_checkpoint, unseal_checkpoint
from tests.support.configs import keyed_cfg, tiny_model_cfg
from tests.support.layers import KEY, SALTS, keyed_layers, layers, pictures


def gap(a, b):
    return float((a - b).norm() / b.norm())


def sealed(model, mode='sealed'):
    return seal_checkpoint({'state_dict': model.state_dict()}, Sealing(KEY, mode=mode))['state_dict']


def halved(state, names=lambda name, value: True):
    return {n: v.half() if names(n, v) else v for n, v in state.items()}


def test_a_state_dict_that_was_cast_whole_loads():
    model, other = keyed_layers(SALTS[0]), keyed_layers(SALTS[1], seed=1)
    assert gap(other(pictures()), model(pictures())) > 0.1
    other.load_state_dict(halved(model.state_dict()))
    assert 0 < gap(other(pictures()), model(pictures())) < 1e-2


CAST = 'its tensors were float32 then, and were cast.*open the file first: keyseg unlock'
CHANGES = {
    'all tensors cast': (halved, CAST),
    'floats cast': (lambda state: halved(state, lambda name, value: value.is_floating_point()), CAST),
    'to float64': (lambda state: {n: v.double() if v.is_floating_point() else v for n, v in state.items()}, CAST),
    'what fits': (
        lambda state: {n: v for n, v in state.items() if n != '0.weight'},
        'holds 5 .*, and held 6: some were',
    ),
    'resized': (lambda state: {**state, '2.bias': state['2.bias'][:8].repeat(2)}, 'do not fit together.*resize'),
    'averaged': (
        lambda state: {n: (v + v.flip(0)) / 2 if v.is_floating_point() else v for n, v in state.items()},
        'was altered after it was sealed.*To average',
    ),
}


@pytest.mark.parametrize('mode', ['sealed', 'signed'])
@pytest.mark.parametrize('change', CHANGES)
def test_what_was_done_to_a_sealed_file_is_said(change, mode):
    model, (make, words) = keyed_layers(), CHANGES[change]
    state = sealed(model, mode)
    assert unseal_checkpoint(KEY, {'state_dict': state})
    with pytest.raises(IntegrityError, match=words):
        keyed_layers(SALTS[1]).load_state_dict(make(state))


def test_a_mean_of_stamps_is_none():
    one, two = (sealed(keyed_layers(salt)) for salt in SALTS[:2])
    mean = {n: (one[n].double() + two[n].double()).div(2).to(one[n].dtype) for n in one}
    with pytest.raises(StampError, match='no average can be taken.*leave out those named keyseg_stamp'):
        stamps_of(mean)


def test_an_ema_copy_of_a_model_that_loads_nothing_is_right():
    model = keyed_layers()
    ema = ExponentialMovingAverage(model, update_buffers=True)
    for _ in range(2):
        ema.update_parameters(model)
        assert stamps_of(ema.module.state_dict()) == stamps_of(model.state_dict())
    assert gap(ema.module(pictures()), model(pictures())) < 1e-6


@pytest.mark.parametrize('loaded', [True, False])
def test_an_ema_copy_of_before_a_load_is_right_or_refused(loaded):
    """The host's copy takes the state_dict's tensors for its own, once, and copies into them."""
    source, model = keyed_layers(SALTS[0], seed=1), keyed_layers(SALTS[1])
    ema = ExponentialMovingAverage(model, update_buffers=True)
    model.load_state_dict(source.state_dict())
    if loaded:  # as the host's hook does
        ema.module.load_state_dict(source.state_dict())
    for _ in range(2):
        ema.update_parameters(model)
    if loaded:
        assert gap(ema.module(pictures()), model(pictures())) < 1e-6
        assert stamps_of(ema.module.state_dict()) == stamps_of(model.state_dict())
    else:
        with pytest.raises(PlanMismatchError, match='whose tables are others.*after a checkpoint is loaded'):
            ema.module.state_dict()
    assert stamps_of(model.state_dict())


def test_stamps_of_one_model_are_of_one_length():
    """With the weights that carry its maps, or without; or the host could not copy one into another."""
    model = keyed_layers(points=('in:2', 'in:4'))
    (name, short), (stamp,) = list(model.state_dict().items())[-1], stamps_of(model.state_dict()).values()
    protection = protections(model)[0]
    known = tuple(replace(e, weights=(e.point[3:] + '.weight',)) for e in stamp.maps)
    protection.stamp = replace(stamp, entries=known, recipients=(), commitment='')
    assert len(protection.stamp.to_bytes()) > len(replace(stamp, recipients=(), commitment='').to_bytes())
    assert model.state_dict()[name].shape == short.shape


def test_a_model_without_memory_is_built_and_filled(tmp_path, key_file):
    cfg = keyed_cfg(tiny_model_cfg(), f'file:{key_file}', points='linear')
    with torch.device('meta'):
        model = MODELS.build(cfg)
    assert all(value.is_meta for value in model.parameters())
    source, x = MODELS.build(cfg).eval(), torch.rand(1, 3, 64, 64)
    assert len(model.state_dict()) == len(source.state_dict())
    model.to_empty(device='cpu').load_state_dict(source.state_dict())
    assert gap(model.eval()(x, mode='tensor'), source(x, mode='tensor')) == 0


@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason='this torch has no gloo')
def test_a_sharded_model_hands_out_its_stamp(tmp_path):
    fsdp = pytest.importorskip('torch.distributed.fsdp')
    from torch.distributed.device_mesh import init_device_mesh

    if not hasattr(fsdp, 'fully_shard'):
        pytest.skip('this torch has no fully_shard')
    model, expected = keyed_layers(), keyed_layers().state_dict()
    dist.init_process_group('gloo', init_method=f'file://{tmp_path}/group', rank=0, world_size=1)
    try:
        fsdp.fully_shard(model, mesh=init_device_mesh('cpu', (1,)))
        found = model.state_dict()
        assert type(found['0.weight']) is not torch.Tensor
        assert found.keys() == expected.keys() and stamps_of(found) == stamps_of(expected)
        whole = {n: v.full_tensor() if hasattr(v, 'full_tensor') else v for n, v in found.items()}
        assert all(torch.equal(whole[n], v) for n, v in layers().state_dict().items())
    finally:
        dist.destroy_process_group()


def test_parameters_of_other_kinds_are_handed_out():
    model = keyed_layers()
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    assert isinstance(model[0].weight, nn.Parameter) and stamps_of(model.state_dict())
