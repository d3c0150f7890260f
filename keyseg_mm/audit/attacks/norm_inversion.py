"""Inversion of stored statistics from unlabelled images."""

from __future__ import annotations

import numpy as np

from keyseg_mm.audit.attack import Attack, Attempt, Progress, register
from keyseg_mm.audit.attacks._inversion import invert
from keyseg_mm.audit.attacks._learn import Fitness
from keyseg_mm.audit.attacks._moments import norms_behind, read
from keyseg_mm.audit.attacks._spots import Spot, firing_order, pictures, readers_of, spots_of
from keyseg_mm.audit.case import Case
from keyseg_mm.maps.base import ChannelMap

IMAGES = 8  # labelled ones that judge a doubtful guess
HOPELESS = 1.0  # equations for each channel below which a search is hardly worth its time


@register
class NormInversion(Attack):
    """Find the key under which a layer's outputs have the mean and variance that its batch norm remembers.

    Needs unlabelled images, a few dozen. Goes through the points in forward order, with the earlier guesses in place
    and batch norms on the statistics of the batch. At a point, the mean and covariance of the map and the protected
    weights of its readers give the mean and variance of every output under any key; those of the true key meet the
    running statistics of the norm behind. That is two equations for each output, hence enough where a layer has more
    outputs than inputs; further, columns that read correlated channels point alike in a trained layer, so the columns'
    cosines must resemble the map's correlations in the right order. This holds for layers without a norm too, and for
    models trained with the key. The order is found by exchanges at falling temperature from random starts (signs by
    flips), until two starts agree; a rotation by gradient descent over its blocks.

    Where the case grants labelled images too, doubtful guesses that raise their cross entropy are left out again.

    Costs a forward pass over the images and a search of seconds to minutes for each point; the seconds of the budget
    are shared out evenly among the points that have equations enough, with little for the others.
    """

    name = 'norm-inversion'
    title = 'inversion of norm statistics and correlations'
    needs = frozenset({'unlabelled'})
    source = 'activation matching in Git Re-Basin, arXiv 2209.04836; CANON; graph matching: Umeyama, PAMI 1988'
    cost = 'a forward pass and a search for each point; no labels'

    def run(self, case: Case, progress: Progress) -> Attempt:
        assert case.unlabelled is not None
        clock, spots = case.budget.clock(), firing_order(case, spots_of(case))
        norms = norms_behind(case, case.model(), pictures(case, 2))
        readers = {s.text: readers_of(case, s) for s in spots}
        shares = {s.text: _share(case, s, readers[s.text]) for s in spots}
        rng, guesses = np.random.default_rng(case.seed), dict[str, ChannelMap]()
        trail, early = [], True
        for at, spot in enumerate(spots):
            left = case.budget.seconds - clock.seconds
            seconds = left * shares[spot.text] / sum(shares[s.text] for s in spots[at:])
            readings = read(case, spot, guesses, readers[spot.text], norms) if left > 0 else []
            if not readings:
                early = early and left > 0
                continue
            found = invert(spot, readings, seconds, rng)
            guesses[spot.text] = found.guess
            trail.append({'point': spot.text, 'misfit': found.misfit, 'runs': found.runs, 'agreed': found.agreed})
            progress((at + 1) / len(spots), f'{spot.text}: {found.runs} starts')
        agreed = sum(bool(t['agreed']) for t in trail)
        words = f'at {agreed} of {len(spots)} points two searches from random starts met'
        if case.labelled is not None:
            guesses = prune(case, spots, guesses, {str(t['point']) for t in trail if t['agreed']})
            words += f'; kept {len(guesses)} guesses, by the cross entropy on labelled images'
        done = early and all(t['agreed'] for t in trail)
        used = len(case.unlabelled) + min(IMAGES, len(case.labelled or ()))
        return Attempt(guesses, None, used, not done and clock.share > 0.9, words, trail)


def prune(case: Case, spots: list[Spot], guesses: dict[str, ChannelMap], sure: set[str]) -> dict[str, ChannelMap]:
    """Leave out, one after another, the guesses that are not sure and do more harm than none, by labelled images."""
    assert case.labelled is not None
    fitness, kept = Fitness(case, case.labelled.take(slice(0, IMAGES)), spots), dict(guesses)
    lowest = fitness(kept)
    for spot in reversed(spots):
        if spot.text in kept and spot.text not in sure:
            trial = {text: guess for text, guess in kept.items() if text != spot.text}
            value = fitness(trial)
            if value < lowest:
                kept, lowest = trial, value
    return kept


def _share(case: Case, spot: Spot, readers: list[tuple[str, int]]) -> float:
    """How much of the time a point is worth: little where it has more channels than its readers give equations.

    A search that is done early leaves its time to the later points, which need a right guess here.
    """
    outputs = sum(len(case.weights[f'{name}.weight']) for name, _ in readers)
    return 1.0 if 2 * outputs >= spot.channels * HOPELESS else 0.1
