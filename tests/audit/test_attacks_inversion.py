"""Inversion of norm statistics: it breaks what it should, from images without labels."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from keyseg_mm.audit.model.attacks.inversion import NormEquations, equations_at
from keyseg_mm.audit.model.attacks.points import points_of
from tests.support.locks import accuracy, attack, attack_quietly, case_of, pictures, right, trained


def equations(channels, outputs, kernel):
    draw = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    a = normal(channels * kernel, channels * kernel)
    covariance = (a @ a.T).reshape(channels, kernel, channels, kernel)
    variance = torch.rand(outputs, generator=draw, dtype=torch.float64) + 0.5
    return NormEquations(
        normal(channels, outputs, kernel), normal(channels, kernel), covariance, normal(outputs), variance
    )


@pytest.mark.parametrize('kernel', [1, 4])
def test_an_offered_change_is_the_change_of_the_misfit(kernel):
    rng, made, matrix = np.random.default_rng(0), equations(7, 5, kernel), torch.eye(7, dtype=torch.float64)
    misfit = float(made.start(matrix))
    for _ in range(60):
        i, j = rng.integers(0, 7, 2).tolist()
        signs = tuple(rng.choice([-1.0, 1.0], 2).tolist())
        offered = float(made.offers(i, signs)[j])
        made.exchange(i, j, signs)
        old = matrix.clone()
        matrix[:, j] = signs[1] * old[:, i]
        matrix[:, i] = signs[0] * old[:, j]
        kept = float(made._misfit(made.level, made.spread))
        assert kept == pytest.approx(misfit + offered, rel=1e-6, abs=1e-6)
        misfit = float(made.start(matrix))
        assert kept == pytest.approx(misfit, rel=1e-9)


def test_the_true_key_meets_the_norms_and_a_random_one_does_not():
    case, maps = case_of(['in:b'], unlabelled=pictures(32, 60))
    point = points_of(case)[0]
    (made,) = equations_at(case, point, {})
    drawn = made.start(point.random(np.random.default_rng(0)).matrix())
    assert made.start(maps['in:b'].matrix()) < drawn / 10
    last, _ = case_of(['in:head'], unlabelled=pictures(32, 60))
    assert not equations_at(last, points_of(last)[0], {})  # without a norm behind there are none


@pytest.mark.parametrize('transform', ['ChannelPermutation', 'SignedChannelPermutation'])
def test_a_point_before_a_norm_falls_without_labels(transform):
    case, maps = case_of(['in:b'], transform=transform, unlabelled=pictures(32, 60), seconds=10)
    attempt = attack('norm-inversion', case)
    assert right(attempt.guesses['in:b'], maps['in:b']) > 0.8
    assert accuracy(case.model(attempt.guesses)) > accuracy(case.model(maps)) - 0.05
    assert accuracy(case.model()) < 0.7


def test_rotations_are_left_to_other_attacks():
    case, _ = case_of(['in:b'], transform='ChannelRotation', unlabelled=pictures(4, 60))
    assert not attack_quietly('norm-inversion', case).guesses


def test_points_one_after_another_from_the_first_layer_on():
    case, maps = case_of(['in:a', 'in:b'], unlabelled=pictures(32, 60), seconds=8)
    attempt = attack('norm-inversion', case)
    assert right(attempt.guesses['in:a'], maps['in:a']) == 1
    assert right(attempt.guesses['in:b'], maps['in:b']) > 0.8


def test_pictures_of_noise_give_nothing():
    noise = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    photos = dataclasses.replace(pictures(2, 1), images=noise)
    scrambled = dict(trained())
    draw = torch.Generator().manual_seed(1)
    for name in ('b_bn.running_mean', 'b_bn.running_var', 'b.weight'):
        scrambled[name] = (
            scrambled[name].flatten()[torch.randperm(scrambled[name].numel(), generator=draw)].view_as(scrambled[name])
        )
    case, maps = case_of(['in:b'], weights=scrambled, unlabelled=photos, seconds=4)
    assert right(attack('norm-inversion', case).guesses['in:b'], maps['in:b']) < 0.5
