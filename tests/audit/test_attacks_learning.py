"""Attacks that learn or search on labelled images: each breaks the lock built for it, and no more."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from keyseg_mm.audit.engine.attack import Budget
from keyseg_mm.audit.model.attack import ATTACKS, Case, Target
from keyseg_mm.audit.model.attacks.points import AttackedPoint, array_of
from keyseg_mm.audit.model.attacks.substitutes import SoftMap
from tests.support.grants import grants
from tests.support.locks import (
    CLASSES,
    TinyNet,
    accuracy,
    attack,
    attack_quietly,
    case_of,
    lock,
    make_plan,
    pictures,
    random_maps,
    right,
    sites_of,
    trained,
)


def few(count=12, seed=50):
    return pictures(count, seed)


def shuffled(photos, seed=1):
    """The same photos with labels that have nothing to do with them."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, photos.labels.shape, generator=draw)
    return dataclasses.replace(photos, labels=labels)


@pytest.mark.parametrize('name', ['substitute-layer', 'substitute-sinkhorn'])
def test_a_single_point_falls_to_a_substitute(name):
    case, maps = case_of(['in:b'], labelled=few(), steps=400)
    assert accuracy(case.model()) < 0.6
    attempt = attack(name, case)
    assert accuracy(attempt.model or case.model(attempt.guesses)) > accuracy(case.model(maps)) - 0.06


def test_the_soft_permutation_finds_the_table_itself():
    case, maps = case_of(['in:b'], labelled=few(24), steps=500)
    assert right(attack('substitute-sinkhorn', case).guesses['in:b'], maps['in:b']) > 0.6


@pytest.mark.parametrize('name', ['substitute-layer', 'substitute-sinkhorn'])
def test_a_substitute_learns_nothing_from_wrong_labels(name):
    case, _ = case_of(['in:b'], labelled=shuffled(few()), steps=100)
    attempt = attack(name, case)
    assert accuracy(attempt.model or case.model(attempt.guesses)) < 0.5


@pytest.mark.parametrize('transform', ['ChannelPermutation', 'SignedChannelPermutation', 'ChannelRotation'])
def test_soft_maps_stay_in_their_family(transform):
    entry = make_plan(['in:b'], transform).entries[0]
    soft = SoftMap(AttackedPoint(entry), np.random.default_rng(0))
    with torch.no_grad():
        soft.scores.normal_(generator=torch.Generator().manual_seed(0))
        soft.scores += 6 * torch.eye(16)[torch.from_numpy(np.random.default_rng(1).permutation(16))]
        soft.signs.fill_(3.0)
    soft.anneal(1.0)
    matrix = soft.matrix().detach()
    assert torch.allclose(matrix.norm(dim=1), torch.ones(16), atol=0.2)
    rounded = array_of(soft.rounded())
    assert np.abs(rounded @ rounded.T - np.eye(16)).max() < 1e-6
    assert (rounded * matrix.numpy()).sum() > 12


def test_a_random_key_is_a_key_of_the_family_and_of_no_use():
    case, maps = case_of(['in:b', 'in:c'])
    attempt = attack_quietly('random-keys', case)
    assert set(attempt.guesses) == set(maps)
    assert np.mean([right(attempt.guesses[p], maps[p]) for p in maps]) < 0.3
    assert accuracy(case.model(attempt.guesses)) < 0.6


@pytest.mark.parametrize('name', ['finetune-all', 'finetune-head', 'finetune-norm'])
def test_fine_tuning_trains_what_it_says(name):
    case, _ = case_of(['in:b'], labelled=few(16), steps=80)
    attempt = attack(name, case)
    assert accuracy(attempt.model) > accuracy(case.model()) + 0.05
    moved = {k for k, v in attempt.model.state_dict().items() if not torch.equal(v, case.weights[k])}
    assert ('b.weight' in moved) == (name == 'finetune-all')
    assert ('head.weight' in moved) == (name != 'finetune-norm')
    assert ('b_bn.weight' in moved) == (name != 'finetune-head')


def test_fine_tuning_on_wrong_labels_gives_nothing():
    case, _ = case_of(['in:b'], labelled=shuffled(few()), steps=60)
    assert accuracy(attack('finetune-all', case).model) < 0.5


def test_norm_fine_tuning_of_a_model_without_norms_trains_its_head():
    class Bare(nn.Sequential):
        pass

    model = Bare(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1))
    assert ATTACKS['finetune-norm']().names(model) == {'1.weight', '1.bias'}


@pytest.mark.parametrize('name', sorted(ATTACKS))
def test_no_attack_is_possible_without_what_it_needs(name):
    case, _ = case_of(['in:b'])
    assert ATTACKS[name].possible(case) == (not ATTACKS[name].needs and Target.MAPS in ATTACKS[name].against)
    assert ATTACKS[name].__doc__ and len(ATTACKS[name].__doc__) > 60


@pytest.mark.parametrize('name', sorted(name for name, cls in ATTACKS.items() if Target.MAPS in cls.against))
def test_every_attack_keeps_to_a_budget_of_no_time(name):
    plan = make_plan(['in:b'])
    maps = random_maps(plan)
    second = (make_plan(['in:b'], salt=bytes(range(16))), lock(trained(), random_maps(plan, 8)))
    everything = dict(
        labelled=few(4),
        unlabelled=few(4),
        public=trained(),
        second=second,
    )
    case, _ = case_of(['in:b'], maps, steps=3, seconds=0.0, **everything)
    attempt = attack_quietly(name, case)
    assert set(attempt.guesses) <= {'in:b'}
    assert case.model(attempt.guesses) is not None


class WithAuxiliaryHead(TinyNet):
    """A point whose map no output of the test pass depends on."""

    def __init__(self) -> None:
        super().__init__()
        self.aux = nn.Conv2d(16, CLASSES, 1)

    def forward(self, x):
        self.aux(torch.relu(self.a_bn(self.a(x))))
        return super().forward(x)


@pytest.mark.parametrize('name', ['substitute-sinkhorn', 'substitute-layer'])
def test_points_of_auxiliary_heads_do_not_stop_an_attack(name):
    plan = make_plan(['in:head'])
    plan = dataclasses.replace(plan, entries=(*plan.entries, dataclasses.replace(plan.maps[0], point='in:aux')))

    def build_with_head():
        with torch.random.fork_rng():
            torch.manual_seed(1)
            return WithAuxiliaryHead().eval()

    weights = {**build_with_head().state_dict(), **trained()}
    maps = random_maps(plan)
    weights['head.weight'] = maps['in:head'](weights['head.weight'], 1)
    sites, granted = sites_of(build_with_head(), plan), grants(labelled=pictures(4, 50))
    case = Case(plan, weights, build_with_head, CLASSES, sites, budget=Budget(60, 30.0), grants=granted)
    attempt = attack(name, case)
    assert accuracy(attempt.model or case.model(attempt.guesses)) > accuracy(case.model())
