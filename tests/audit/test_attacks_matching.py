"""Attacks with public weights or a second file: each breaks what it is known to break, and no more."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from keyseg_mm.audit.model.attack import ATTACKS
from tests.support.grants import granting
from tests.support.locks import accuracy, attack, case_of, lock, make_plan, random_maps, right, trained

POINTS = ['in:b', 'in:c', 'in:head']


def tuned(weights, size=0.1, seed=3):
    """What fine-tuning does to public weights: every layer moved a little, some rows far."""
    draw = torch.Generator().manual_seed(seed)
    moved = {}
    for name, value in weights.items():
        if value.dim() == 4:
            noise = torch.randn(value.shape, generator=draw) * value.std() * size
            noise[::8] *= 10 if len(value) > 8 else 1
            value = value + noise
        moved[name] = value
    return moved


def test_the_lock_does_lock_and_the_key_opens_it():
    case, maps = case_of(POINTS)
    plain = accuracy(case.model(maps))
    assert plain > 0.9
    assert accuracy(case.model()) < plain - 0.4


@pytest.mark.parametrize('transform', ['ChannelPermutation', 'SignedChannelPermutation'])
def test_a_permutation_over_public_weights_falls_to_matching(transform):
    case, maps = case_of(POINTS, transform=transform, weights=tuned(trained()), public=trained())
    attempt = attack('match-public', case)
    assert np.mean([right(attempt.guesses[p], maps[p]) for p in POINTS]) > 0.98
    assert accuracy(case.model(attempt.guesses)) > accuracy(case.model(maps)) - 0.02
    assert accuracy(case.model()) < accuracy(case.model(maps)) - 0.1


@pytest.mark.parametrize('transform', ['ChannelPermutation', 'ChannelRotation'])
def test_matching_fails_against_unrelated_public_weights(transform):
    case, maps = case_of(POINTS, transform=transform, public=trained(seed=5, steps=60))
    attempt = attack('match-public', case)
    assert np.mean([right(attempt.guesses[p], maps[p]) for p in POINTS]) < 0.4


def test_a_rotation_falls_to_procrustes():
    case, maps = case_of(POINTS, transform='ChannelRotation', public=trained())
    attempt = attack('match-public', case)
    assert min(right(attempt.guesses[p], maps[p]) for p in ['in:b', 'in:c']) > 0.98
    assert accuracy(case.model(attempt.guesses)) > 0.9
    assert accuracy(case.model()) < 0.7


def test_a_rotation_over_tuned_weights_falls_to_procrustes():
    case, maps = case_of(['in:b'], transform='ChannelRotation', weights=tuned(trained(), 0.05), public=trained())
    guess = attack('match-public', case).guesses['in:b'].matrix().numpy()
    cosines = (guess * maps['in:b'].matrix().numpy()).sum(1)
    assert cosines.min() > 0.95


def test_an_output_point_falls_through_the_layers_that_the_stamp_names():
    case, maps = case_of(['out:a_bn'], public=trained())
    assert not attack('match-public', case).guesses  # trained with the key: nobody says who reads it
    entry = dataclasses.replace(case.stamp.maps[0], weights=('b.weight',))
    told = dataclasses.replace(case, stamp=dataclasses.replace(case.stamp, entries=(entry,)))
    assert right(attack('match-public', told).guesses['out:a_bn'], maps['out:a_bn']) == 1


def test_matching_says_what_it_could_not_match():
    public = {name: value for name, value in trained().items() if not name.startswith('head')}
    case, _ = case_of(POINTS, public=public)
    attempt = attack('match-public', case)
    assert 'in:head' not in attempt.guesses and 'in:b' in attempt.guesses
    assert '2 of 3 points' in attempt.notes


def test_a_point_that_the_second_file_leaves_alone_falls():
    second_plan = make_plan(['in:c'], salt=bytes(range(16)))
    second = second_plan, lock(trained(), random_maps(second_plan, seed=8))
    case, maps = case_of(['in:b', 'in:c'], second=second)
    attempt = attack('two-files', case)
    assert set(attempt.guesses) == {'in:b'} and right(attempt.guesses['in:b'], maps['in:b']) == 1
    assert '1 of 2 points open' in attempt.notes


def test_two_files_protected_alike_give_the_relative_map_only():
    plan = make_plan(['in:b'], salt=bytes(range(16)))
    theirs = random_maps(plan, seed=8)
    case, maps = case_of(['in:b'], second=(plan, lock(trained(), theirs)))
    attempt = attack('two-files', case)
    assert not attempt.guesses and 'at 0 both' in attempt.notes
    same = granting(case, second=(case.stamp, lock(trained(), maps)))
    again = attack('two-files', same)
    assert not again.guesses and 'at 1 both have the same map' in again.notes


def test_without_their_material_these_attacks_are_not_possible():
    case, _ = case_of(POINTS)
    for name in ('match-public', 'two-files'):
        assert not ATTACKS[name].possible(case)
