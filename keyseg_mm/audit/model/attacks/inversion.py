"""Inversion of norm statistics: the key under which outputs are as the norms behind them remember them."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import numpy as np
import torch

from keyseg_mm.audit.engine.budget import Budget, Progress
from keyseg_mm.audit.model.attack import Attack, Attempt, Case, LabelledPhotos, Photos, register
from keyseg_mm.audit.model.attacks.finetuning import FineTuneAll, part_of
from keyseg_mm.audit.model.attacks.fitness import Fitness
from keyseg_mm.audit.model.attacks.moments import NormEquations, equations_at, norms_behind
from keyseg_mm.audit.model.attacks.points import AttackedPoint, Guesses, Matrix, array_of, points_of
from keyseg_mm.audit.model.attacks.probing import firing_order, readers_of
from keyseg_mm.audit.model.attacks.standins import SoftMap
from keyseg_mm.maps import ChannelMap

IMAGES = 8  # labelled ones that judge a doubtful guess
FEWEST_RUNS, MOST_RUNS = 8, 200
STEPS, LR = 400, 0.05  # of a descent over rotations


@register
class NormInversion(Attack):
    """Find the key under which a layer's outputs have the mean and variance that its batch norm remembers.

    Needs unlabelled images, a few dozen. Goes through the points in forward order, with the earlier guesses in place
    and batch norms on the statistics of the batch. At a point, the mean and covariance of the map and the protected
    weights of its readers give the mean and variance of every output under any key; those of the true key meet the
    running statistics of the norm behind. That is two equations for each output, hence enough where a layer has more
    outputs than inputs. The order is found from random starts by exchanges of two channels (signs by flips), each the
    best there is, until none helps, and until the two best starts end in one guess; a rotation by gradient descent over
    its blocks. Points without a norm behind, or with too few equations, are left as they are.

    Where the case grants labelled images too, doubtful guesses that raise their cross entropy are left out again.

    The seconds of the budget are shared out evenly among the points.
    """

    name = 'norm-inversion'
    title = 'inversion of norm statistics'
    needs = frozenset({Photos})
    source = 'activation matching in Git Re-Basin, arXiv 2209.04836; batch norm statistics in Yin et al., CVPR 2020'
    cost = 'a forward pass and a search of seconds to minutes for each point; no labels'

    def run(self, case: Case, progress: Progress) -> Attempt:
        clock, points, norms = case.budget.clock(), firing_order(case, points_of(case)), norms_behind(case)
        rng, guesses = np.random.default_rng(case.seed), Guesses()
        trail: list[dict[str, Any]] = []
        for at, point in enumerate(points):
            left = (case.budget.seconds - clock.seconds) / (len(points) - at)
            equations = equations_at(case, point, guesses, readers_of(case, point), norms) if left > 0 else []
            if 2 * sum(len(e.wanted) for e in equations) >= point.channels:
                guesses[point.text], facts = invert(point, equations, left, rng)
                trail.append({'point': point.text, **facts})
            progress((at + 1) / len(points), point.text)
        agreed = {str(t['point']) for t in trail if t['agreed']}
        words = f'at {len(agreed)} of {len(points)} points two searches from random starts met'
        if LabelledPhotos in case:
            guesses = _pruned(case, points, guesses, agreed)
            words += f'; kept {len(guesses)} guesses, by the cross entropy on labelled images'
        return Attempt(guesses, None, len(case[Photos]), exhausted=clock.out_of_time, notes=words, trail=trail)


@register
class NormInversionTuned(Attack):
    """Repair what inversion can repair, and fine-tune the rest.

    Needs labelled images; unlabelled ones too if there are any, else the labelled ones serve for both. A partly right
    key is a better start for fine-tuning than none: layers that were recovered work again, and only the others have to
    be learned anew. Half of the seconds go to the inversion.
    """

    name = 'norm-inversion-tuned'
    title = 'inversion of norm statistics, then fine-tuning'
    needs = frozenset({LabelledPhotos})
    source = 'both: activation matching in Git Re-Basin, arXiv 2209.04836, and fine-tuning'
    cost = 'an inversion and a training'
    kind = 'retrain'

    def run(self, case: Case, progress: Progress) -> Attempt:
        clock, half = case.budget.clock(), Budget(case.budget.steps, case.budget.seconds / 2)
        inverted = dataclasses.replace(case, budget=half)
        found = NormInversion().run(inverted, part_of(progress, 0, 0.5))
        attempt = FineTuneAll().tune(case.model(found.guesses), case, part_of(progress, 0.5, 0.5), clock)
        if case[Photos] is not case[LabelledPhotos]:
            attempt.images_used += len(case[Photos])
        attempt.notes, attempt.trail = f'{found.notes}; then {attempt.notes}', [*found.trail, *attempt.trail]
        return attempt


def invert(
    point: AttackedPoint, equations: list[NormEquations], seconds: float, rng: np.random.Generator
) -> tuple[ChannelMap, dict[str, Any]]:
    """The map under which the readers' statistics meet those of the norms behind them, and facts for the report.

    Args:
        point: where.
        equations: of its readers.
        seconds: that it may take.
        rng: of starts and of the order of moves.
    """
    until, ends = time.monotonic() + seconds, list[tuple[float, Matrix]]()
    descend = _turned if point.turned else _exchanged
    agreed = False
    while len(ends) < MOST_RUNS and not agreed and (not ends or time.monotonic() < until):
        matrix = descend(point, equations, until, rng)
        misfit = sum(e.start(torch.from_numpy(matrix)) for e in equations) / len(equations)
        ends.append((float(misfit), matrix))
        ends.sort(key=lambda end: end[0])
        # of chance two searches never meet
        met = len(ends) >= FEWEST_RUNS and (ends[0][1] * ends[1][1]).sum() > 0.9 * point.channels
        agreed = bool(met)
    return point.round(ends[0][1]), {'misfit': ends[0][0], 'runs': len(ends), 'agreed': agreed}


def _exchanged(point: AttackedPoint, equations: list[NormEquations], until: float, rng: np.random.Generator) -> Matrix:
    """From a random map to one that no exchange of two channels, their signs kept or not, makes fit better."""
    matrix = torch.from_numpy(array_of(point.random(rng)))
    choices = [(1.0, 1.0), (-1.0, -1.0), (1.0, -1.0), (-1.0, 1.0)][: 4 if point.signed else 1]
    for e in equations:
        e.start(matrix)
    moved = True
    while moved and time.monotonic() < until:
        moved = False
        for i in rng.permutation(point.channels).tolist():
            offers = torch.stack([torch.stack([e.offers(i, s) for e in equations]).sum(0) for s in choices])
            best = int(offers.nan_to_num(torch.inf).argmin())
            signs, j = choices[best // point.channels], best % point.channels
            if offers[best // point.channels, j] > -1e-9:
                continue
            old, moved = matrix.clone(), True
            matrix[:, j] = signs[1] * old[:, i]
            matrix[:, i] = signs[0] * old[:, j]
            for e in equations:
                e.exchange(i, j, signs)
    return np.asarray(matrix.numpy())


def _turned(point: AttackedPoint, equations: list[NormEquations], until: float, rng: np.random.Generator) -> Matrix:
    """From a random rotation down the slope."""
    soft = SoftMap(point, rng, spread=1.0)
    adam = torch.optim.Adam(soft.parameters(), lr=LR)
    with torch.enable_grad():
        for step in range(STEPS):
            soft.anneal(step / STEPS)
            misfit: Any = sum(e.start(soft.matrix().double()) for e in equations)
            adam.zero_grad()
            misfit.backward()
            adam.step()
            if time.monotonic() > until:
                break
    return array_of(soft.rounded())


def _pruned(case: Case, points: list[AttackedPoint], guesses: Guesses, sure: set[str]) -> Guesses:
    """Leave out, one after another, the guesses that are not sure and do more harm than none, by labelled images."""
    fitness, kept = Fitness(case, case[LabelledPhotos].take(slice(0, IMAGES)), points), guesses
    lowest = fitness(kept)
    for point in reversed(points):
        if point.text in kept and point.text not in sure:
            trial = {text: guess for text, guess in kept.items() if text != point.text}
            value = fitness(trial)
            if value < lowest:
                kept, lowest = trial, value
    return kept
