"""Direction matching one to one (Hungarian) against public weights."""

from __future__ import annotations

import numpy as np

from keyseg_mm.audit.attack import Attack, Attempt, Progress, register
from keyseg_mm.audit.attacks._matching import Columns, match_each, trusted, unit
from keyseg_mm.audit.attacks._spots import Spot, array_of
from keyseg_mm.audit.case import Case
from keyseg_mm.maps.base import ChannelMap

ROUNDS = 3  # reweighted matchings; the first is nearly always the last that changes anything


def match(spot: Spot, ours: Columns, theirs: Columns) -> ChannelMap:
    """The map of the spot's family with the largest total cosine between matched channels, outlying rows damped."""
    guess = spot.round(unit(ours) @ unit(theirs).T)
    for _ in range(ROUNDS - 1):
        weight = np.sqrt(trusted(ours, theirs, array_of(guess)))
        guess = spot.round(unit(ours * weight) @ unit(theirs * weight).T)
    return guess


@register
class HungarianMatching(Attack):
    """Match every reader's input channels with those of the public weights, one to one, by direction.

    Needs public weights of the same architecture, from which the protected model was made or fine-tuned. The cosine of
    every pair of input channels is a c x c table; the assignment with the largest total is the guess, by its absolute
    value where the transform may negate (the sign comes with it). Cosines rather than products, so that a channel that
    was rescaled still matches. The matching is repeated with outlying features damped, since fine-tuning moves some
    rows far. An ``out:`` point's readers are found by probing the model. A rotation is answered by Procrustes.

    Costs one assignment for each point, O(c^3): seconds for a whole model. No images.
    """

    name = 'match-hungarian'
    title = 'direction matching, one to one'
    needs = frozenset({'public'})
    source = 'ArrowMatch, USENIX Security 2025; Git Re-Basin, arXiv 2209.04836; GroupCover, ICML 2024'
    cost = 'seconds; no images'

    def run(self, case: Case, progress: Progress) -> Attempt:
        return match_each(case, progress, match)
