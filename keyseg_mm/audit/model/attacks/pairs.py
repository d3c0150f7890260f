"""Two views of one secret: what entered and left the encryptors in a run, and two protected files of one model."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from keyseg_mm.audit.engine.budget import Progress
from keyseg_mm.audit.model.attack import Attack, Attempt, Case, Recording, SecondFile, register
from keyseg_mm.audit.model.attacks.matching import agreement, by_kind
from keyseg_mm.audit.model.attacks.points import (
    AttackedPoint,
    Guesses,
    array_of,
    assign,
    points_of,
    polar,
    rotation_of,
    signed_of,
)
from keyseg_mm.audit.model.attacks.probing import Columns, facing_columns, readers_of
from keyseg_mm.maps import ChannelMap

POSITIONS = 8192  # of a map that are compared; more tell no more


@register
class RecordedPairs(Attack):
    """Read the key off the maps before and after an encryptor.

    Needs a recording of one authorised run with a hook on each encryptor, as anybody has who may run the model with the
    key on their own machine. A permutation is found by comparing every channel that left with every one that entered, a
    signed one likewise up to the sign, a rotation by Procrustes block by block. Exact from one image, but for channels
    that are zero everywhere, which are all alike and do not matter.
    """

    name = 'recorded-pairs'
    title = 'recorded input and output of the encryptors'
    needs = frozenset({Recording})
    source = 'key extraction from HPNN, DAC 2024'
    cost = 'a matrix product for each point: seconds'

    def run(self, case: Case, progress: Progress) -> Attempt:
        recorded = case[Recording].pairs
        guesses, trail, points = Guesses(), [], points_of(case)
        for at, point in enumerate(points):
            if point.text in recorded:
                entered, left = (_channels(case, point, x) for x in recorded[point.text])
                guess = guesses[point.text] = _between(point, entered, left)
                apart = np.abs(array_of(guess) @ entered - left).max() / (np.abs(left).max() + 1e-12)
                trail.append({'point': point.text, 'error': float(apart)})
                progress((at + 1) / len(points), point.text)
        return Attempt(guesses, None, 1, notes=f'recordings of {len(guesses)} of {len(points)} points', trail=trail)


def _between(point: AttackedPoint, entered: Columns, left: Columns) -> ChannelMap:
    """The map between two recordings, both (channels, positions)."""
    if point.turned:
        return rotation_of([polar(left[b] @ entered[b].T) for b in point.blocks()])
    lengths, products = (left**2).sum(1)[:, None] + (entered**2).sum(1)[None], 2 * left @ entered.T
    if not point.signed:
        return point.round(products - lengths)
    table = assign(np.abs(products) - lengths)
    return signed_of(table, products[np.arange(len(table)), table] < 0)


def _channels(case: Case, point: AttackedPoint, x: Tensor) -> Columns:
    site = case.sites.get(point.text)
    dim = site.dim if site else (1 if x.dim() >= 4 and x.shape[1] == point.channels else -1)
    flat = x.detach().cpu().double().movedim(dim, 0).flatten(1)
    if flat.shape[1] > POSITIONS:
        draw = torch.Generator().manual_seed(case.seed)
        flat = flat[:, torch.randperm(flat.shape[1], generator=draw)[:POSITIONS]]
    return np.asarray(flat.numpy(), dtype=np.float64)


@register
class TwoFiles(Attack):
    """Match another customer's checkpoint, or another release, with this one.

    Needs a second protected checkpoint. At a point that the second one leaves alone its weights serve as public ones,
    and the key falls as it does to direction matching. At a point that both protect, the matching gives the relative
    map ``T1 T2^-1`` and no more, which is no guess at either key: it is reported, not handed in. It is the identity
    where one key met one salt twice, and then whatever breaks one file breaks the other.
    """

    name = 'two-files'
    title = 'two protected files against each other'
    needs = frozenset({SecondFile})
    source = 'collusion of customers, arXiv 2602.11088'
    cost = 'an assignment for each point: seconds; no images'

    def run(self, case: Case, progress: Progress) -> Attempt:
        second = case[SecondFile]
        protected = {entry.point for entry in second.stamp.maps}
        guesses, points = Guesses(), points_of(case)
        trail: list[dict[str, Any]] = []
        for at, point in enumerate(points):
            pair = facing_columns(case, point, second.weights)
            progress((at + 1) / len(points), point.text)
            if pair is None:
                continue
            relative = by_kind(point, *pair)
            # the second file may protect the layers that read this map under another name
            alone = not protected & {point.text, *(f'in:{name}' for name, _ in readers_of(case, point))}
            same = float((np.diag(array_of(relative)) > 0.99).mean())
            matched = agreement(relative, *pair)
            trail.append({'point': point.text, 'agreement': matched, 'alone': alone, 'identity': same})
            if alone:
                guesses[point.text] = relative
        return Attempt(guesses, notes=self._words(case, trail), trail=trail)

    def _words(self, case: Case, trail: list[dict[str, Any]]) -> str:
        alone = sum(t['alone'] for t in trail)
        mean = np.mean([t['agreement'] for t in trail]) if trail else 0.0
        words = [f'{alone} of {len(trail)} points stand open in the second file; agreement {mean:.3f}']
        other = case[SecondFile].stamp
        if (other.salt, other.key_id) == (case.stamp.salt, case.stamp.key_id):
            words.append('both files have one key and one salt: their maps are the same')
        elif alone < len(trail):
            words.append('elsewhere only the map of one key relative to the other is found')
        return '; '.join(words)
