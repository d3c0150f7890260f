"""One small config of every family that mmsegmentation ships, locked with the defaults and put to the proof."""

from __future__ import annotations

import itertools

import pytest
import torch

from keyseg_mm import SecretKey, plan_lock, unlock
from keyseg_mm.locking import lock_in_place
from keyseg_mm.locking.proof import agreement
from keyseg_mm.mm import bench
from tests.support.families import DEPTH, FAMILIES, SIDES, build, plain_or_skip, small_model
from tests.support.proofs import BENCH, prove

# a salt under which no model draws maps that leave most of its pixels their class, as two of eight do for mobilenet_v3
KEY, SALT = SecretKey(bytes(range(32))), bytes([1]) * 16
# K-Net takes the weights of this layer for its first kernels, so that it is more than a layer
NOT_A_LAYER = {'knet': ('in:decode_head.kernel_generate_head.conv_seg',)}


def locked_and_proved(model) -> tuple:
    """The plan and the proof, of which the model's own weights are none the wiser."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    plan = plan_lock(model)
    found = prove(model, model.state_dict(), plan, KEY, SALT)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    return plan, found


def check(model, plan, found) -> None:
    """Locked, the model is the plain one with the key, and is not without; and it can be unlocked bit for bit."""
    assert found.with_key.is_equal, found
    assert not found.is_weak and found.without['without it'].error > 0.1
    state = model.state_dict()
    locked = dict(state)
    lock_in_place(locked, plan, KEY, SALT)
    carried = {name for entry in plan.entries for name in entry.weights}
    assert len(carried) > 15
    changed = {name for name in state if not torch.equal(locked[name], state[name])}
    assert changed <= carried and len(changed) > 15
    # a map of a picture's three channels may be drawn that leaves them as they are, and a bias may be zeros
    assert all(not state[name].any() or state[name].shape[1] == 3 for name in carried - changed)
    back = unlock(locked, KEY)
    assert list(back) == list(state) and all(torch.equal(back[name], state[name]) for name in state)


@pytest.mark.parametrize('family', [family for family in FAMILIES if family not in NOT_A_LAYER])
def test_family(family):
    model = plain_or_skip(family, small_model(family), SIDES.get(family, 64))
    plan, found = locked_and_proved(model)
    check(model, plan, found)


def test_depth_estimator():
    model = build(DEPTH)
    plan, found = locked_and_proved(model)
    assert found.with_key.is_equal and found.plan == plan
    assert len(plan.entries) > 15


@pytest.mark.parametrize('family', NOT_A_LAYER)
def test_a_weight_that_is_used_as_data_is_found_out_and_left_out(family):
    model = build(small_model(family))
    plan, found = locked_and_proved(model)
    blamed = {entry.point for entry in plan.maps} - {entry.point for entry in found.plan.maps}
    assert blamed == set(NOT_A_LAYER[family])
    assert len(found.plan.entries) == len(plan.entries) - len(blamed) > 40
    check(model, found.plan, found)


def test_random_draws_are_the_same_in_both_runs(monkeypatch):
    """SegNeXt's decomposition starts from random bases: two runs differ, and only the same draw tells anything."""
    model = build(small_model('segnext'))
    assert agreement(BENCH.run(model), BENCH.run(model)).is_equal
    seeds, seed = itertools.count(), torch.manual_seed
    monkeypatch.setattr(bench.torch, 'manual_seed', lambda _: seed(next(seeds)))
    assert not agreement(BENCH.run(model), BENCH.run(model)).is_equal
