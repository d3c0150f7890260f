"""Searching for the key by trying."""

from __future__ import annotations

import numpy as np

from keyseg_mm.audit.engine.budget import Progress
from keyseg_mm.audit.model.attack import Attack, Attempt, Case, register
from keyseg_mm.audit.model.attacks.points import points_of


@register
class RandomKeys(Attack):
    """Draw a key at random: what it gives is the floor of every recovery."""

    name = 'random-keys'
    title = 'a random key'
    source = 'every paper on access control; Ito et al., arXiv 2206.05422'
    cost = 'nothing'

    def run(self, case: Case, progress: Progress) -> Attempt:
        rng = np.random.default_rng(case.seed)
        return Attempt({point.entry.point: point.random(rng) for point in points_of(case)})
