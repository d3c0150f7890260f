"""The proof of a lock: the key makes it plain, without the key it is not, and who is to blame where it fails."""

from __future__ import annotations

import math

import pytest
import torch

from keyseg_mm import plan_lock
from keyseg_mm.errors import (
    LockError,
)
from keyseg_mm.locking.proof import agreement
from keyseg_mm.model.points import Point
from tests.support.proofs import BENCH, prove

SALT = bytes(range(16))


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
    same = agreement(outputs, outputs)
    assert (same.error, same.loss_error, same.same) == (0, 0, 1)
    name = next(n for n, t in outputs.items() if n.startswith('test') and t.dim() == 3 and t.shape[0] > 1)
    a = torch.zeros(2, 4, 4)
    a[1, :, :2] = 1  # half the pixels of each class
    b = a.flip(2)  # all of them the other way round
    halves = agreement({name: a}, {name: b})
    assert (halves.same, halves.kappa) == (0, -1)
    constant = agreement({name: torch.ones(2, 4, 4)}, {name: torch.ones(2, 4, 4)})
    assert math.isnan(constant.kappa)
