"""Orthogonal Procrustes against public weights: for rotations, and for any orthogonal map at all."""

from __future__ import annotations

import numpy as np

from keyseg_mm.audit.attack import Attack, Attempt, Progress, register
from keyseg_mm.audit.attacks._matching import Columns, match_each, trusted
from keyseg_mm.audit.attacks._spots import Spot, array_of, polar, rotation_of
from keyseg_mm.audit.case import Case
from keyseg_mm.maps.base import ChannelMap

ROUNDS = 3


def match(spot: Spot, ours: Columns, theirs: Columns) -> ChannelMap:
    """The block-diagonal orthogonal matrix that takes the public columns nearest to the protected ones."""
    guess = _blocks(spot, ours, theirs)
    for _ in range(ROUNDS - 1):
        weight = np.sqrt(trusted(ours, theirs, array_of(guess)))
        guess = _blocks(spot, ours * weight, theirs * weight)
    return guess


def _blocks(spot: Spot, ours: Columns, theirs: Columns) -> ChannelMap:
    return rotation_of([polar(ours[b] @ theirs[b].T) for b in spot.blocks()])


@register
class Procrustes(Attack):
    """Find the orthogonal map between the protected and the public input channels, in closed form.

    Needs public weights of the same architecture. With ``W' = M W`` along the input channels, ``W' W^T = U S V^T``
    gives ``M = U V^T``, the orthogonal matrix nearest in the sense of least squares; for a rotation block by block, as
    the stamp tells the blocks, for other transforms over all channels at once. It is repeated with outlying features
    damped. Of a permutation it finds the same map, less surely than an assignment, where rows outnumber channels.

    Costs one singular value decomposition for each block. No images.
    """

    name = 'procrustes'
    title = 'orthogonal Procrustes'
    needs = frozenset({'public'})
    source = 'Schoenemann, Psychometrika 1966; the breaks of ObfuscaTune, arXiv 2407.02960'
    cost = 'seconds; no images'

    def run(self, case: Case, progress: Progress) -> Attempt:
        return match_each(case, progress, match)
