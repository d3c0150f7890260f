"""Part of the key: what it gives, with the rest at random."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from keyseg_mm.audit.attack import Attack, Attempt, Progress, register
from keyseg_mm.audit.attacks._learn import Fitness
from keyseg_mm.audit.attacks._search import completed
from keyseg_mm.audit.attacks._spots import spots_of
from keyseg_mm.audit.case import Case

SHARES = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)


def leaked(case: Case, text: str, channels: int) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """What is known at a point: mask of rows, and the table; nothing where the case has no entry."""
    known, tables = case.known or {}, case.known_tables or {}
    if text not in known or text not in tables:
        return np.zeros(channels, dtype=bool), np.zeros((channels, channels))
    return np.asarray(known[text], dtype=bool), np.asarray(tables[text], dtype=np.float64)


@register
class PartialKey(Attack):
    """Fill the unknown entries of a partly leaked key at random.

    Needs part of the key. Shows how mIoU grows with the share of the key that is right: a good lock gives nothing for
    half a key. The curve takes ever more of what leaked (0 to 1 of it) and scores it on the labelled images, if the
    case grants any; the guesses are those with all of what leaked.

    Costs a forward pass over the labelled images (8 at most) for each point of the curve.
    """

    name = 'partial-key'
    title = 'partial key, the rest at random'
    needs = frozenset({'known', 'known_tables'})
    source = 'Tiered language models, arXiv 2606.21638'
    cost = 'a few forward passes'
    IMAGES = 8

    def run(self, case: Case, progress: Progress) -> Attempt:
        clock, spots = case.budget.clock(), spots_of(case)
        facts = {s.text: leaked(case, s.text, s.channels) for s in spots}
        order = {s.text: np.random.default_rng([case.seed, 1]).permutation(s.channels) for s in spots}
        photos = case.labelled.take(slice(0, self.IMAGES)) if case.labelled is not None else None
        fitness = Fitness(case, photos, spots) if photos is not None else None
        total, trail, guesses = sum(s.channels for s in spots), [], {}
        for at, share in enumerate(SHARES):
            rng, right = np.random.default_rng(case.seed), 0
            for spot in spots:
                known, table = facts[spot.text]
                rows = order[spot.text][known[order[spot.text]]]
                part = np.zeros_like(known)
                part[rows[: round(share * len(rows))]] = True
                guesses[spot.text] = completed(spot, part, table, rng)
                right += int(part.sum())
            if fitness is not None and not clock.out_of_time:
                trail.append({'share': right / total, 'miou': fitness.miou(guesses)})
            progress((at + 1) / len(SHARES), f'{100 * right / total:.0f} % of the key')
        words = f'{100 * right / total:.0f} % of the entries leaked'
        return Attempt(guesses, None, len(photos) if photos else 0, clock.out_of_time, words, trail)
