"""Direction matching, greedy: the published baseline."""

from __future__ import annotations

import numpy as np

from keyseg_mm.audit.attack import Attack, Attempt, Progress, register
from keyseg_mm.audit.attacks._matching import Columns, match_each, unit
from keyseg_mm.audit.attacks._spots import Spot
from keyseg_mm.audit.case import Case
from keyseg_mm.maps.base import ChannelMap


def match(spot: Spot, ours: Columns, theirs: Columns) -> ChannelMap:
    """Take the best pair, cross out its row and column, and so on; exact for a clear match, and quick."""
    cosine = unit(ours) @ unit(theirs).T
    size = np.abs(cosine) if spot.signed else cosine
    matrix, order = np.zeros_like(cosine), np.argsort(-size, axis=None)
    rows, columns = np.ones(len(size), dtype=bool), np.ones(len(size), dtype=bool)
    for i, j in zip(*np.unravel_index(order, size.shape)):
        if rows[i] and columns[j]:
            matrix[i, j] = np.copysign(1.0, cosine[i, j]) if spot.signed else 1.0
            rows[i] = columns[j] = False
    return spot.round(matrix)


@register
class GreedyMatching(Attack):
    """Match input channels with public ones by always taking the most similar pair left.

    Needs public weights of the same architecture. The greedy half of the direction attacks: where the protected
    weights have not moved far it finds what the one-to-one assignment finds, and where the two part, the margin is
    thin. A rotation has no pairs; there the pairs only say roughly where its blocks' mass lies.

    Costs a sort of c^2 cosines for each point: seconds for a whole model. No images.
    """

    name = 'match-greedy'
    title = 'direction matching, greedy'
    needs = frozenset({'public'})
    source = 'ArrowMatch, USENIX Security 2025'
    cost = 'seconds; no images'

    def run(self, case: Case, progress: Progress) -> Attempt:
        return match_each(case, progress, match)
