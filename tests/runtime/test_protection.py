"""Keyed models and the stamp: what a load accepts, refuses and says."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.model import BaseTTAModel
from mmengine.runner.checkpoint import load_state_dict as mmengine_load
from mmseg.models.segmentors import EncoderDecoder
from mmseg.registry import MODELS
from torch import nn

from keyseg_mm import attach, detach, entries_at, protections, resolve, stamps_of
from keyseg_mm.bind import stamp_tensor
from keyseg_mm.errors import (
    KeyFileError,
    KeyMismatchError,
    KeysegError,
    PlainCheckpointError,
    PlanMismatchError,
    PointError,
    SecretExposedError,
    StampError,
)
from keyseg_mm.mm.dryrun import trace_module
from keyseg_mm.mm.keyed import salt_of_run
from keyseg_mm.stamp import STAMP_PREFIX, Stamp, stamp_of_value
from keyseg_mm.wrapping import open_envelope
from tests.support.configs import keyed_cfg, tiny_model_cfg

LOADS = {
    'torch': lambda m, s: m.load_state_dict(s, strict=True),
    'mmengine': lambda m, s: mmengine_load(m, s, strict=True),
}


@pytest.fixture(params=LOADS)
def load(request):
    return LOADS[request.param]


def build(locator, **protection):
    return MODELS.build(keyed_cfg(tiny_model_cfg(), str(locator), **protection)).eval()


@pytest.fixture
def keyed(key_file):
    return build(f'file:{key_file}')


def logits(model, image):
    with torch.no_grad():
        return model(image)


def test_same_class_and_keys_plus_the_stamp(keyed):
    plain = MODELS.build(tiny_model_cfg())
    assert isinstance(keyed, EncoderDecoder) and repr(keyed) == repr(plain)
    extra = set(keyed.state_dict()) - set(plain.state_dict())
    assert set(plain.state_dict()) <= set(keyed.state_dict())
    assert extra == {protections(keyed)[0].stamp.name}
    assert [n for n, _ in keyed.named_parameters()] == [n for n, _ in plain.named_parameters()]
    assert [n for n, _ in keyed.named_buffers()] == [n for n, _ in plain.named_buffers()]


def test_detach_gives_the_plain_model_back(keyed, image):
    plain = MODELS.build(tiny_model_cfg()).eval()
    weights = {k: v for k, v in keyed.state_dict().items() if not k.startswith(STAMP_PREFIX)}
    plain.load_state_dict(weights)
    assert not torch.allclose(logits(keyed, image), logits(plain, image), atol=1e-3)
    assert detach(keyed) == 2 + 1  # the maps that something reads
    assert torch.equal(logits(keyed, image), logits(plain, image))
    assert set(keyed.state_dict()) == set(plain.state_dict())
    assert not protections(keyed)
    assert detach(keyed) == 0


def test_right_key_takes_over_the_salt(keyed, key, key_file, load, image):
    salt_of_run.cache_clear()  # as in another run
    twin = build(f'file:{key_file}')
    before = logits(twin, image)
    assert protections(twin)[0].stamp.salt != protections(keyed)[0].stamp.salt
    load(twin, keyed.state_dict())
    assert protections(twin)[0].stamp == protections(keyed)[0].stamp
    assert torch.equal(logits(twin, image), logits(keyed, image))
    assert not torch.allclose(before, logits(twin, image))
    stamp = stamp_of_value(twin.state_dict()[protections(twin)[0].stamp.name])
    assert stamp == protections(keyed)[0].stamp
    assert stamp.key_ids == (key.id,) and open_envelope(key, stamp).features == key.features(stamp.salt)


def test_other_key_is_refused_naming_both(keyed, key, other_key, other_key_file, load):
    with pytest.raises(KeyMismatchError) as caught:
        load(build(f'file:{other_key_file}'), keyed.state_dict())
    assert key.id in str(caught.value) and other_key.id in str(caught.value)


def test_plain_checkpoint_is_refused_with_the_way_out(keyed, load):
    with pytest.raises(PlainCheckpointError, match='keyseg lock'):
        load(keyed, MODELS.build(tiny_model_cfg()).state_dict())


@pytest.mark.parametrize('protection', [{}, {'points': 'linear', 'transform': 'SignedChannelPermutation'}])
def test_a_plain_checkpoint_to_train_on_carries_the_maps(protection, key_file, load, image):
    plain = MODELS.build(tiny_model_cfg()).eval()
    model = build(f'file:{key_file}', start='plain', **protection)
    assert not torch.allclose(logits(model, image), logits(plain, image), atol=1e-3)
    load(model, plain.state_dict())
    assert torch.allclose(logits(model, image), logits(plain, image), atol=1e-5)
    assert stamps_of(model.state_dict())[''].is_carried
    detach(model)
    assert not torch.allclose(logits(model, image), logits(plain, image), atol=1e-3)


def test_unkeyed_model_says_which_key_it_wants(keyed, key, capsys):
    plain = MODELS.build(tiny_model_cfg())
    mmengine_load(plain, keyed.state_dict(), strict=False)
    assert f'needs_key_{key.id}' in capsys.readouterr().out
    assert torch.equal(plain.state_dict()['backbone.conv1.weight'], keyed.state_dict()['backbone.conv1.weight'])


def test_no_key_runs_degraded_with_one_warning_and_puts_no_stamp_on_its_weights(keyed, key, image, load, caplog):
    with caplog.at_level(logging.WARNING, logger='keyseg_mm'):
        model = build('none')
        built = len(caplog.records)
        load(model, keyed.state_dict())
    assert (built, len(caplog.records)) == (1, 2)
    assert 'UNAUTHORISED' in caplog.text and key.id in caplog.text
    assert not torch.allclose(logits(model, image), logits(keyed, image), atol=1e-3)
    assert not stamps_of(model.state_dict())


def test_wrong_key_on_purpose_runs_with_a_warning(keyed, image, load, caplog):
    with caplog.at_level(logging.WARNING, logger='keyseg_mm'):
        model = build('random:1')
        load(model, keyed.state_dict())
    assert 'on purpose' in caplog.text
    assert protections(model)[0].stamp.salt == protections(keyed)[0].stamp.salt
    assert not torch.allclose(logits(model, image), logits(keyed, image), atol=1e-3)


def test_other_points_or_transforms_are_refused(keyed, key_file, load):
    for protection in (
        dict(points=['out:backbone:3']),
        dict(transform='SignedChannelPermutation'),
        dict(transform=dict(type='ChannelRotation', block=4)),
    ):
        with pytest.raises(PlanMismatchError, match='out:backbone:2'):
            load(build(f'file:{key_file}', **protection), keyed.state_dict())


@pytest.mark.parametrize('points', ['stages', 'linear'])
def test_a_teacher_that_takes_its_students_weights_is_its_student(key_file, other_key_file, image, points):
    """As the host's semi-supervised detectors do it: two models of one config, updated parameter by parameter."""
    student, teacher = (build(f'file:{key_file}', points=points) for _ in range(2))
    assert not torch.allclose(logits(student, image), logits(teacher, image), atol=1e-3)
    for tensors in (nn.Module.named_parameters, nn.Module.named_buffers):
        for (_, there), (_, here) in zip(tensors(student), tensors(teacher)):
            here.data.copy_(there.data)
    assert torch.equal(logits(student, image), logits(teacher, image))
    salts = {protections(build(f'file:{key_file}', points=points))[0].stamp.salt for _ in range(2)}
    assert salts == {protections(student)[0].stamp.salt}
    for changed in (dict(points=['out:backbone:3']), dict(points=points, transform='SignedChannelPermutation')):
        assert protections(build(f'file:{key_file}', **changed))[0].stamp.salt not in salts
    assert protections(build(f'file:{other_key_file}', points=points))[0].stamp.salt not in salts


def test_fixed_salt(keyed, key_file, load):
    salt = '00' * 16
    model = build(f'file:{key_file}', salt=salt)
    assert protections(model)[0].stamp.salt.hex() == salt
    load(model, build(f'file:{key_file}', salt=salt).state_dict())
    with pytest.raises(PlanMismatchError, match='salt'):
        load(model, keyed.state_dict())
    with pytest.raises(StampError, match='hex digits'):
        build(f'file:{key_file}', salt='xyz')


def test_failed_load_leaves_the_model_as_it_was(keyed, other_key_file, load):
    model = build(f'file:{other_key_file}')
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(KeyMismatchError):
        load(model, keyed.state_dict())
    after = model.state_dict()
    assert set(before) == set(after) and all(torch.equal(before[k], after[k]) for k in before)


@pytest.mark.parametrize(
    'edit',
    [
        ('"version":1', '"version":9'),
        ('"format":"keyseg_mm stamp"', '"format":"x"'),
        ('"entries":[', '"entries":7,"x":['),
        ('out:backbone:2', 'backbone'),
    ],
)
def test_damaged_stamps_are_errors(keyed, key_file, edit, load):
    state = keyed.state_dict()
    name = protections(keyed)[0].stamp.name
    text = bytes(state[name].tolist()).decode()
    assert edit[0] in text
    state[name] = torch.tensor(list(text.replace(*edit).encode()), dtype=torch.uint8)
    with pytest.raises(StampError):
        load(build(f'file:{key_file}'), state)
    for bad in (torch.zeros(3), torch.zeros(2, 2, dtype=torch.uint8), torch.full((9,), 255, dtype=torch.uint8)):
        state[name] = bad
        with pytest.raises(StampError):
            load(build(f'file:{key_file}'), state)


def test_stamp_round_trip(keyed):
    plan = protections(keyed)[0].stamp
    assert Stamp.from_bytes(plan.to_bytes()) == plan
    assert stamp_of_value(stamp_tensor(plan)).entries[0].channels == 32
    assert stamps_of({f'backbone.{plan.name}': stamp_tensor(plan), 'w': torch.zeros(1)}) == {'backbone': plan}


@pytest.mark.parametrize('key_option', [None, '', 'file:/no/such/key', 'env:NO_SUCH_KEY'])
def test_missing_key_stops_before_anything_is_built(key_option, monkeypatch):
    built = []
    monkeypatch.setattr(EncoderDecoder, '__init__', lambda self, **_: built.append(1))
    with pytest.raises(KeyFileError):
        MODELS.build(
            ConfigDict(tiny_model_cfg(), type='keyseg_mm.Keyed', of='EncoderDecoder', protection=dict(key=key_option))
        )
    assert not built


def test_a_secret_in_the_config_is_refused(key):
    with pytest.raises(SecretExposedError) as caught:
        build(key.to_text())
    assert key.to_text() not in str(caught.value)


def test_bad_options(key_file):
    with pytest.raises(KeysegError, match="'colour'"):
        build(f'file:{key_file}', colour='red')
    with pytest.raises(PointError, match='nearest'):
        build(f'file:{key_file}', points='out:backbon:3')
    with pytest.raises(PointError, match='never fires'):
        build(f'file:{key_file}', points='out:decode_head')


@pytest.mark.parametrize('part', ['backbone', 'decode_head', 'auxiliary_head'])
def test_keyed_parts(part, key_file, other_key_file, image, load):
    """Keyed at any level: the stamp sits with the part."""
    points = 'stages' if part == 'backbone' else 'in:conv_seg'

    def part_keyed(path):
        cfg = tiny_model_cfg()
        cfg[part] = keyed_cfg(cfg[part], f'file:{path}', points=points)
        return MODELS.build(cfg).eval()

    model = part_keyed(key_file)
    assert list(stamps_of(model.state_dict())) == [part]
    load(part_keyed(key_file), model.state_dict())
    with pytest.raises(KeyMismatchError):
        load(part_keyed(other_key_file), model.state_dict())
    with pytest.raises(PlainCheckpointError):
        load(model, MODELS.build(tiny_model_cfg()).state_dict())
    fired = model.loss if part == 'auxiliary_head' else model.forward
    before = protections(model)[0].encryptors[0].calls
    from keyseg_mm.mm.inputs import random_samples

    fired(image, random_samples(model, image))
    assert protections(model)[0].encryptors[0].calls == before + 1


def test_neck_and_keyed_neck(key_file, image, load):
    plain = MODELS.build(tiny_model_cfg()).eval()
    neck = ConfigDict(type='keyseg_mm.KeyedNeck', in_channels=[8, 16, 32, 64], protection=dict(key=f'file:{key_file}'))
    model = MODELS.build(ConfigDict(tiny_model_cfg(), neck=neck)).eval()
    assert list(stamps_of(model.state_dict())) == ['neck']
    model.load_state_dict({**model.state_dict(), **plain.state_dict()})
    assert not torch.allclose(logits(model, image), logits(plain, image), atol=1e-3)
    load(MODELS.build(ConfigDict(tiny_model_cfg(), neck=neck)), model.state_dict())
    with pytest.raises(PlainCheckpointError):
        load(model, plain.state_dict())
    with pytest.raises(KeysegError, match='leave points out'):
        MODELS.build(ConfigDict(neck, protection=dict(key='none', points='neck')))
    detach(model)
    assert torch.equal(logits(model, image), logits(plain, image))


def test_pretrained_backbone_may_fill_a_keyed_backbone(tmp_path, key_file):
    """The host's own init_cfg puts plain public weights into a keyed backbone; a whole plain checkpoint it may not."""
    plain = MODELS.build(tiny_model_cfg())
    torch.save(plain.backbone.state_dict(), tmp_path / 'backbone.pth')
    cfg = tiny_model_cfg()
    cfg.backbone.init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'backbone.pth'))
    cfg.backbone = keyed_cfg(cfg.backbone, f'file:{key_file}')
    model = MODELS.build(cfg)
    model.init_weights()
    assert torch.equal(model.backbone.conv1.weight, plain.backbone.conv1.weight)
    with pytest.raises(PlainCheckpointError):
        mmengine_load(model, plain.state_dict())


def test_copies_of_the_hosts_models(keyed, image):
    """EMA deep-copies models: the copy works and saves the stamp."""
    twin = copy.deepcopy(keyed)
    assert protections(twin)[0].key is protections(keyed)[0].key
    assert torch.equal(logits(twin, image), logits(keyed, image))
    assert set(twin.state_dict()) == set(keyed.state_dict())
    assert detach(twin) == 2 + 1
    assert protections(keyed)
    protections(keyed)[0].check(keyed)


def test_pickling_a_keyed_model_is_refused(keyed, tmp_path):
    with pytest.raises(SecretExposedError, match='state_dict'):
        torch.save(keyed, tmp_path / 'whole.pth')
    torch.save(keyed.state_dict(), tmp_path / 'weights.pth')
    assert stamps_of(torch.load(tmp_path / 'weights.pth', weights_only=True)) == {'': protections(keyed)[0].stamp}


def test_tta_wrapper_is_transparent(keyed, key_file, image):
    class Tta(BaseTTAModel):
        def merge_preds(self, data_samples_list):
            return data_samples_list

    wrapped = Tta(module=build(f'file:{key_file}'))
    mmengine_load(wrapped, keyed.state_dict(), strict=True)
    assert torch.equal(logits(wrapped.module, image), logits(keyed, image))


def test_attach_checks_before_it_changes(image, key, other_key):
    model = MODELS.build(tiny_model_cfg())
    sites = resolve('stages', model, trace_module(model))
    entries = entries_at(sites)
    for wrong in (dict(entries=entries[1:]), dict(entries=entries, salt=b'short')):
        with pytest.raises(KeysegError):
            attach(model, key, sites, **wrong)
        assert detach(model) == 0
    attach(model, key, sites, entries)
    with pytest.raises(PlanMismatchError, match='protected already'):
        attach(model, other_key, sites, entries)
    assert detach(model) == 4 + 1
