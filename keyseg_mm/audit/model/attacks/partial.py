"""What part of the key gives: with the rest at random, and with the rest found by hill climbing."""

from __future__ import annotations

import numpy as np

from keyseg_mm.audit.engine.budget import Progress
from keyseg_mm.audit.model.attack import Attack, Attempt, Case, LabelledPhotos, LeakedRows, register
from keyseg_mm.audit.model.attacks.fitness import Fitness
from keyseg_mm.audit.model.attacks.points import AttackedPoint, Guesses, Matrix, points_of, rotation_of
from keyseg_mm.audit.model.attacks.probing import firing_order
from keyseg_mm.audit.model.attacks.search import IMAGES, Climb, Mask
from keyseg_mm.maps import ChannelMap

SHARES = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)  # of what leaked


@register
class PartialKey(Attack):
    """Fill the unknown entries of a partly leaked key at random.

    Needs part of the key. Shows how mIoU grows with the share of the key that is right: a good lock gives nothing for
    half a key. The curve takes ever more of what leaked (0 to 1 of it) and scores it on the labelled images, if the
    case grants any; the guesses are those with all of what leaked.
    """

    name = 'partial-key'
    title = 'partial key, the rest at random'
    needs = frozenset({LeakedRows})
    source = 'Tiered language models, arXiv 2606.21638'
    cost = 'a forward pass over at most 8 images for each point of the curve'

    def run(self, case: Case, progress: Progress) -> Attempt:
        clock, points, trail = case.budget.clock(), points_of(case), []
        facts = {p.text: _leaked(case, p) for p in points}
        orders = {p.text: np.random.default_rng([case.seed, 1]).permutation(p.channels) for p in points}
        photos = case[LabelledPhotos].take(slice(0, IMAGES)) if LabelledPhotos in case else None
        fitness = photos and Fitness(case, photos, points)
        guesses, total = Guesses(), sum(p.channels for p in points)
        for at, share in enumerate(SHARES):
            rng, right = np.random.default_rng(case.seed), 0
            for point in points:
                known, table = facts[point.text]
                rows = orders[point.text][known[orders[point.text]]]
                part = np.zeros_like(known)
                part[rows[: round(share * len(rows))]] = True
                guesses[point.text] = completed(point, part, table, rng)
                right += int(part.sum())
            if fitness and not clock.out_of_time:
                trail.append({'share': right / total, 'miou': fitness.miou(guesses)})
            progress((at + 1) / len(SHARES), f'{100 * right / total:.0f} % of the key')
        words = f'{100 * right / total:.0f} % of the entries leaked'
        return Attempt(guesses, None, len(photos or ()), exhausted=clock.out_of_time, notes=words, trail=trail)


@register
class PartialKeyCompleted(Attack):
    """Fix the entries of the key that leaked and climb with the others.

    Needs part of the key and labelled images. With most of the key right the model nearly works, the gradient points
    at the swaps that are missing, and climbing finishes the job; the share from which it does is what a partial leak
    really costs.
    """

    name = 'partial-key-completed'
    title = 'partial key, completed by hill climbing'
    needs = frozenset({LeakedRows, LabelledPhotos})
    source = 'Tiered language models, arXiv 2606.21638; MaungMaung and Kiya, arXiv 2109.00224'
    cost = 'a forward pass over at most 8 images for each try'

    def run(self, case: Case, progress: Progress) -> Attempt:
        clock, points, rng = case.budget.clock(), points_of(case), np.random.default_rng(case.seed)
        photos = case[LabelledPhotos].take(slice(0, IMAGES))
        facts = {p.text: _leaked(case, p) for p in points}
        start = {p.text: completed(p, *facts[p.text], rng) for p in points}
        free = {text: ~known for text, (known, _) in facts.items()}
        climb = Climb(Fitness(case, photos, points), firing_order(case, points), clock, rng, free)
        _, found = climb.run(start, progress)
        return Attempt(found, None, len(photos), exhausted=climb.ended, notes=f'{clock.steps} tries', trail=climb.trail)


def _leaked(case: Case, point: AttackedPoint) -> tuple[Mask, Matrix]:
    """What is known at a point: mask of rows, and the table; nothing where the case has no entry."""
    leak, c = case[LeakedRows], point.channels
    if point.text not in leak.known:
        return np.zeros(c, dtype=bool), np.zeros((c, c))
    return np.asarray(leak.known[point.text], dtype=bool), np.asarray(leak.tables[point.text], dtype=np.float64)


def completed(point: AttackedPoint, known: Mask, table: Matrix, rng: np.random.Generator) -> ChannelMap:
    """A random map of the point's kind among those that have the known rows.

    Args:
        point: where.
        known: rows that are known, (c,).
        table: the map's matrix, right in those rows.
        rng: of the rest.
    """
    if point.turned:
        return rotation_of([_completed_block(known[b], table[b, b], rng) for b in point.blocks()])
    matrix = np.where(known[:, None], table, 0.0)
    rest = np.setdiff1d(np.arange(point.channels), np.abs(table[known]).argmax(1))
    signs = rng.choice([-1.0, 1.0], len(rest)) if point.signed else np.ones(len(rest))
    matrix[np.flatnonzero(~known), rng.permutation(rest)] = signs
    return point.round(matrix)


def _completed_block(known: Mask, table: Matrix, rng: np.random.Generator) -> Matrix:
    block = np.where(known[:, None], table, 0.0)
    rows = rng.standard_normal((int((~known).sum()), len(table)))
    rows -= rows @ block[known].T @ block[known]
    if len(rows):
        u, _, v = np.linalg.svd(rows, full_matrices=False)
        block[~known] = u @ v
    return block
