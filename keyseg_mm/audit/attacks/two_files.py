"""Two protected files of one model against each other."""

from __future__ import annotations

import numpy as np

from keyseg_mm.audit.attack import Attack, Attempt, Progress, register
from keyseg_mm.audit.attacks import match_hungarian, procrustes
from keyseg_mm.audit.attacks._matching import Columns, unit
from keyseg_mm.audit.attacks._spots import Spot, columns_of, layer_weight, readers_of, spots_of
from keyseg_mm.audit.case import Case
from keyseg_mm.maps import ChannelRotation
from keyseg_mm.maps.base import ChannelMap


@register
class TwoFiles(Attack):
    """Match another customer's checkpoint, or another release, with this one.

    Needs a second protected checkpoint. At a point that the second one leaves alone its weights serve as public ones,
    and the key falls as it does to direction matching. At a point that both protect, the matching gives the relative
    map ``T1 T2^-1`` and no more, which is no guess at either key: it is reported, not handed in. It is the identity
    where one key met one salt twice, and then whatever breaks one file breaks the other.

    Costs an assignment for each point. No images.
    """

    name = 'two-files'
    title = 'two protected files against each other'
    needs = frozenset({'second'})
    source = 'collusion of customers, arXiv 2602.11088'
    cost = 'seconds; no images'

    def run(self, case: Case, progress: Progress) -> Attempt:
        assert case.second is not None
        plan, weights = case.second
        theirs_protect = {entry.point for entry in plan.maps}
        guesses: dict[str, ChannelMap] = {}
        trail, spots = [], spots_of(case)
        touched = self._touched(case, theirs_protect, spots)
        for at, spot in enumerate(spots):
            pair = self._pair(case, spot, weights)
            progress((at + 1) / len(spots), spot.text)
            if pair is None:
                continue
            relative = (procrustes if spot.family == ChannelRotation.__name__ else match_hungarian).match(spot, *pair)
            matrix = relative.matrix().numpy()
            agreement = float((unit(pair[0]) * unit(matrix @ pair[1])).sum(1).mean())
            alone = spot.text not in theirs_protect and spot.text not in touched
            same = float((np.diag(matrix) > 0.99).mean())
            trail.append({'point': spot.text, 'agreement': agreement, 'alone': alone, 'identity': same})
            if alone:
                guesses[spot.text] = relative
        return Attempt(guesses, notes=self._words(case, trail), trail=trail)

    def _touched(self, case: Case, others: set[str], spots: list[Spot]) -> set[str]:
        """Points of ours whose readers the second file protects under another name."""
        theirs = {text.split(':')[1] for text in others if text.startswith('in:')}
        return {s.text for s in spots if theirs & {name for name, _ in readers_of(case, s)}}

    def _pair(self, case: Case, spot: Spot, weights: object) -> tuple[Columns, Columns] | None:
        ours, theirs = [], []
        for name, offset in readers_of(case, spot):
            mine, other = layer_weight(case.weights, name), layer_weight(weights, name)
            if mine is not None and other is not None and mine.shape == other.shape:
                ours.append(columns_of(mine, offset, spot.channels))
                theirs.append(columns_of(other, offset, spot.channels))
        return (np.concatenate(ours, 1), np.concatenate(theirs, 1)) if ours else None

    def _words(self, case: Case, trail: list[dict[str, object]]) -> str:
        assert case.second is not None
        alone = sum(bool(t['alone']) for t in trail)
        agreement = np.mean([t['agreement'] for t in trail]) if trail else 0.0
        words = [f'{alone} of {len(trail)} points stand open in the second file; agreement {agreement:.3f}']
        if case.second[0].salt == case.plan.salt and case.second[0].key_id == case.plan.key_id:
            words.append('both files have one key and one salt: their maps are the same')
        elif alone < len(trail):
            words.append('elsewhere only the map of one key relative to the other is found')
        return '; '.join(words)
