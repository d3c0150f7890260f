"""Zeroed and mean-channel maps."""

from __future__ import annotations

import torch

from keyseg_mm.audit.attack import Attack, Attempt, Progress, register
from keyseg_mm.audit.attacks._learn import Fitness
from keyseg_mm.audit.attacks._spots import spots_of
from keyseg_mm.audit.case import Case, MatrixMap
from keyseg_mm.maps.base import ChannelMap


@register
class ZeroedMaps(Attack):
    """Put zeros, or the mean of all channels, in the place of the encrypted maps, one point at a time or everywhere.

    Needs nothing. Where a map matters little (a side branch, a residual), a constant does less harm than the wrong map.
    Without labelled images the mean of the channels is used everywhere; with them the better of the two and of leaving
    the map as it is, point by point.

    Costs three forward passes for each point.
    """

    name = 'zeroed-maps'
    title = 'zeroed and mean-channel maps'
    source = 'every paper on access control; feature ablation'
    cost = 'three forward passes for each point'
    IMAGES = 8

    def run(self, case: Case, progress: Progress) -> Attempt:
        clock, spots = case.budget.clock(), spots_of(case)
        kinds = {s.text: _constant_maps(s.channels) for s in spots}
        if case.labelled is None:
            return Attempt({text: maps['mean'] for text, maps in kinds.items()}, notes='mean-channel maps everywhere')
        photos = case.labelled.take(slice(0, self.IMAGES))
        fitness, best, words = Fitness(case, photos, spots), dict[str, ChannelMap](), []
        starts = {'as it is': best, **{k: {t: maps[k] for t, maps in kinds.items()} for k in ('zero', 'mean')}}
        scores = {kind: fitness(guesses) for kind, guesses in starts.items()}
        kind = min(scores, key=lambda k: scores[k])
        best, lowest = dict(starts[kind]), scores[kind]
        words.append('cross entropy ' + ', '.join(f'{v:.2f} {k}' for k, v in scores.items()))
        for at, spot in enumerate(spots):
            for guess in (None, *kinds[spot.text].values()):
                if not clock.tick():
                    return Attempt(best, None, len(photos), True, words[0])
                trial = {t: g for t, g in best.items() if t != spot.text}
                if guess is not None:
                    trial[spot.text] = guess
                value = fitness(trial)
                if value < lowest:
                    best, lowest = trial, value
            progress((at + 1) / len(spots), f'{spot.text}: {lowest:.2f}')
        return Attempt(best, None, len(photos), False, words[0])


def _constant_maps(channels: int) -> dict[str, ChannelMap]:
    return {
        'zero': MatrixMap(torch.zeros(channels, channels)),
        'mean': MatrixMap(torch.full((channels, channels), 1 / channels)),
    }
