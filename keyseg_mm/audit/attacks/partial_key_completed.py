"""Part of the key, the rest found by hill climbing."""

from __future__ import annotations

import numpy as np

from keyseg_mm.audit.attack import Attack, Attempt, Progress, register
from keyseg_mm.audit.attacks._learn import Fitness
from keyseg_mm.audit.attacks._search import climb, completed
from keyseg_mm.audit.attacks._spots import firing_order, spots_of
from keyseg_mm.audit.attacks.partial_key import leaked
from keyseg_mm.audit.case import Case


@register
class PartialKeyCompleted(Attack):
    """Fix the entries of the key that leaked and climb with the others.

    Needs part of the key and labelled images. With most of the key right the model nearly works, the gradient points
    at the swaps that are missing, and climbing finishes the job; the share from which it does is what a partial leak
    really costs.

    Costs a forward pass over at most 8 images for each try.
    """

    name = 'partial-key-completed'
    title = 'partial key, completed by hill climbing'
    needs = frozenset({'known', 'known_tables', 'labelled'})
    source = 'Tiered language models, arXiv 2606.21638; MaungMaung and Kiya, arXiv 2109.00224'
    cost = 'a forward pass over a few images for each try'
    IMAGES = 8

    def run(self, case: Case, progress: Progress) -> Attempt:
        assert case.labelled is not None
        clock, spots, rng = case.budget.clock(), spots_of(case), np.random.default_rng(case.seed)
        photos = case.labelled.take(slice(0, self.IMAGES))
        facts = {s.text: leaked(case, s.text, s.channels) for s in spots}
        start = {s.text: completed(s, *facts[s.text], rng) for s in spots}
        fired = firing_order(case, spots)
        free = {text: ~known for text, (known, _) in facts.items()}
        found, trail, ended = climb(Fitness(case, photos, spots), fired, start, clock, rng, progress, free)
        return Attempt(found, None, len(photos), ended, f'{clock.steps} tries', trail)
