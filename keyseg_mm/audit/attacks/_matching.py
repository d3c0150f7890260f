"""Matching the weights that read a map against public ones: what the direction attacks share.

A reader's weight W' of a protected model and P of the public one are compared by input channel: if W' = T(P, 1) then
channel i of W' is channel ``table[i]`` of P, up to a sign or a turn within a block.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keyseg_mm.audit.attack import Attempt, Progress
from keyseg_mm.audit.attacks._spots import Spot, columns_of, layer_weight, readers_of, spots_of
from keyseg_mm.audit.case import Case
from keyseg_mm.maps.base import ChannelMap

Columns = NDArray[np.float64]  # (channels, features)


def unit(columns: Columns) -> Columns:
    """Rows of length 1, so that a rescaled channel matches as well as before."""
    return np.asarray(columns / np.maximum(np.linalg.norm(columns, axis=1, keepdims=True), 1e-12))


def pairs_of(case: Case, spot: Spot, notes: list[str]) -> tuple[Columns, Columns] | None:
    """What reads a map, by its channels: in the protected weights and in the public ones, all readers side by side.

    Readers that the public weights lack or have in another shape (other heads) are left out, with a note.
    """
    ours, theirs = [], []
    for name, offset in readers_of(case, spot):
        mine, public = layer_weight(case.weights, name), layer_weight(case.public, name)
        if mine is None or public is None or mine.shape != public.shape:
            notes.append(f'{name}: not in the public weights in this shape')
            continue
        ours.append(columns_of(mine, offset, spot.channels))
        theirs.append(columns_of(public, offset, spot.channels))
    if not ours:
        notes.append(f'{spot.text}: nothing public to match with')
        return None
    return np.concatenate(ours, 1), np.concatenate(theirs, 1)


def trusted(ours: Columns, theirs: Columns, score: NDArray[Any], floor: float = 0.05) -> NDArray[np.float64]:
    """Weights for the features: how well each agrees, given a first matching of the channels.

    Fine-tuning moves some outputs of a layer far and others hardly; those that moved say nothing. The weight of a
    feature falls with its share of the squared differences left by the matching (iteratively reweighted least squares).
    """
    left = (ours - score @ theirs) ** 2
    spread = (ours**2 + (score @ theirs) ** 2).sum(0) + 1e-12
    share = left.sum(0) / spread
    return np.asarray(1.0 / (share + floor), dtype=np.float64)


def match_each(case: Case, progress: Progress, find: Callable[[Spot, Columns, Columns], ChannelMap]) -> Attempt:
    """Go through the points, one after another, with one way of finding a map from two sets of columns."""
    clock = case.budget.clock()
    guesses: dict[str, ChannelMap] = {}
    notes: list[str] = []
    trail: list[dict[str, Any]] = []
    spots = spots_of(case)
    for at, spot in enumerate(spots):
        if clock.out_of_time:
            return Attempt(guesses, exhausted=True, notes='; '.join(notes), trail=trail)
        pair = pairs_of(case, spot, notes)
        if pair is not None:
            guess = guesses[spot.text] = find(spot, *pair)
            agreement = float((unit(pair[0]) * unit(guess.matrix().numpy() @ pair[1])).sum(1).mean())
            trail.append({'point': spot.text, 'agreement': agreement})
        progress((at + 1) / len(spots), spot.text)
    if trail:
        notes.insert(0, f'mean cosine of matched channels {np.mean([t["agreement"] for t in trail]):.3f}')
    return Attempt(guesses, notes='; '.join(notes), trail=trail)
