"""Matching protected weights with public ones, or with another protected file.

A reader's weight W' of a protected model and P of the public one are compared by input channel: if W' = T(P, 1) then
channel i of W' is channel ``table[i]`` of P, up to a sign or a turn within a block. Patch embeddings are matched by
their columns, encrypted weights by the ranks of their values.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from keyseg_mm.audit.engine.attack import Progress
from keyseg_mm.audit.images.attack import block_map
from keyseg_mm.audit.model.attack import Attack, Attempt, Case, PublicWeights, SecondFile, Target, carriers, register
from keyseg_mm.audit.model.attacks.points import AttackedPoint, Guesses, array_of, points_of
from keyseg_mm.audit.model.forward import ImageEncryption, WithInput, encryption_by, load_weights
from keyseg_mm.entries import MapEntry
from keyseg_mm.errors import KeysegError
from keyseg_mm.maps import ChannelMap
from keyseg_mm.maps.matching import assign, unit
from keyseg_mm.maps.order import places, raw

Columns = NDArray[np.float64]  # (channels, everything else) of weights, by input channel
ROUNDS = 3  # reweighted matchings; the first is nearly always the last that changes anything
_FLOOR = 0.05  # of what is left of a feature: one that agrees by chance must not decide alone


def matched(case: Case, other: Mapping[str, Tensor], progress: Progress) -> tuple[Guesses, bool]:
    """At each point the map that takes other weights nearest to the protected ones; and whether the time ran out.

    All weights that carry a map are taken side by side. Points without any that the other weights have too are left
    out, so those at outputs of a model that was trained with the key, as no stamp names their readers.
    """
    clock, guesses, points = case.budget.clock(), Guesses(), points_of(case)
    for at, point in enumerate(points):
        if clock.out_of_time:
            return guesses, True
        pairs = [(case.weights[name], other[name]) for name in carriers(point.entry) if name in other]
        pairs = [pair for pair in pairs if pair[0].shape == pair[1].shape]
        if pairs:
            ours, theirs = (np.concatenate([_columns(w, point.entry) for w in side], 1) for side in zip(*pairs))
            guesses[point.entry.point] = match(point, ours, theirs)
        progress((at + 1) / len(points), point.entry.point)
    return guesses, False


def match(point: AttackedPoint, ours: Columns, theirs: Columns) -> ChannelMap:
    """The map of the point's kind that takes public columns nearest to protected ones.

    For (signed) permutations the assignment with the largest total cosine (Hungarian), for rotations the orthogonal
    matrices of Procrustes. It is found again with outlying features damped (iteratively reweighted least squares):
    fine-tuning moves some outputs of a layer far and others hardly; those that moved say nothing.
    """
    weight = np.ones(ours.shape[1])
    for _ in range(ROUNDS):
        a, b = ours * weight, theirs * weight
        guess = point.round(a @ b.T if point.turned else unit(a) @ unit(b).T)
        fitted = array_of(guess) @ theirs
        share = ((ours - fitted) ** 2).sum(0) / ((ours**2 + fitted**2).sum(0) + 1e-12)
        weight = 1 / np.sqrt(share + _FLOOR)
    return guess


def _columns(weight: Tensor, entry: MapEntry) -> Columns:
    found = weight.detach().cpu().double()
    if entry.along == 1 and found.shape[1] < entry.channels:  # those of each group in turn
        groups = entry.channels // found.shape[1]
        found = found.reshape(groups, -1, *found.shape[1:]).transpose(0, 1).flatten(1, 2)
    return np.asarray(found.movedim(entry.along, 0).reshape(entry.channels, -1).numpy())


@register
class DirectionMatching(Attack):
    """Match every reader's input channels with those of the public weights, one to one, by direction.

    Needs public weights from which the protected model was made or fine-tuned; its layers' outputs stand in the public
    order. The table of the cosines of all input channels is matched by :func:`match`.
    """

    name, title = 'match-public', 'direction matching with public weights'
    needs = frozenset({PublicWeights})
    source = 'ArrowMatch, USENIX Security 2025; GroupCover, ICML 2024; Procrustes: Schoenemann, Psychometrika 1966'
    cost = 'an assignment for each point, O(c^3): seconds; no images'

    def run(self, case: Case, progress: Progress) -> Attempt:
        guesses, late = matched(case, case[PublicWeights].weights, progress)
        words = f'public weights face {len(guesses)} of {len(case.stamp.maps)} points'
        return Attempt(guesses, exhausted=late, notes=words)


@register
class TwoFiles(Attack):
    """Match another customer's checkpoint, or another release, with this one.

    At a point that the second one leaves alone its weights serve as public ones, and the key falls as it does to
    direction matching. At a point that both protect, the matching gives the relative map ``T1 T2^-1`` and no more,
    which is no guess at either key: it is reported, not handed in. It is the identity where one key met one salt
    twice, and then whatever breaks one file breaks the other.
    """

    name, title = 'two-files', 'two protected files against each other'
    needs = frozenset({SecondFile})
    source = 'collusion of customers, arXiv 2602.11088'
    cost = 'an assignment for each point: seconds; no images'

    def run(self, case: Case, progress: Progress) -> Attempt:
        second = case[SecondFile]
        found, late = matched(case, second.weights, progress)
        turned = {name for entry in second.stamp.maps for name in carriers(entry)}
        both = {entry.point for entry in case.stamp.maps if turned & {*carriers(entry)}}
        guesses = {text: guess for text, guess in found.items() if text not in both}
        alike = sum(bool((np.diag(array_of(found[text])) > 0.99).all()) for text in both & {*found})
        words = f'the second file leaves {len(guesses)} of {len(case.stamp.maps)} points open; '
        return Attempt(guesses, exhausted=late, notes=f'{words}at {alike} both have the same map')


@register
class RankMatching(Attack):
    """Give each tensor's moved values the order of the public ones: the smallest goes where the smallest is there.

    An order hides where a value belongs and not what it is. Of a model that was fine-tuned from public weights each
    value has moved a little only, so ranks are nearly the same. Where a few values are moved, their places are known
    from the stamp and the magnitudes.
    """

    name, title = 'rank-matching', 'values in the order of public weights'
    needs = frozenset({PublicWeights})
    against = frozenset({Target.WEIGHTS})
    kind = 'retrain'
    source = 'one-dimensional optimal transport: sorted values match (Villani, 2003)'
    cost = 'two sorts of all weights'

    def run(self, case: Case, progress: Progress) -> Attempt:
        public, weights = case[PublicWeights].weights, dict(case.weights)
        for at, entry in enumerate(case.stamp.tensors):
            known, mine = public.get(entry.names[0]), weights[entry.names[0]]
            moved = places(raw(mine), entry.count)
            if known is not None and known.shape == mine.shape and moved is not None:
                values, ranks = mine.detach().clone().flatten(), known.detach().flatten()[moved].argsort().argsort()
                values[moved] = values[moved].sort().values[ranks]
                weights.update(dict.fromkeys(entry.names, values.view_as(mine)))
            progress((at + 1) / len(case.stamp.tensors), entry.names[0])
        model = case.build()
        load_weights(model, weights)
        return Attempt(model=model.eval())


@register
class MatchPatches(Attack):
    """Line up the columns of the locked patch embedding with those of public weights, and encrypt images by that.

    A lock gives the embedding's columns, one for each value of a block, other places and signs; the largest total of
    absolute cosines tells where each was, and the signs of these whether it was negated. That is the images' cipher.
    """

    name, title = 'match-patches', 'patch embedding matched to public weights'
    needs = frozenset({PublicWeights})
    against = frozenset({Target.IMAGES})
    kind = 'retrain'
    source = 'ArrowMatch (USENIX Security 2025), on patch embeddings'
    cost = 'one assignment of 3 p p columns for patches of p'

    @classmethod
    def possible(cls, case: Case) -> bool:
        return super().possible(case) and bool(case.stamp.embeddings)

    def run(self, case: Case, progress: Progress) -> Attempt:
        images, name = case[ImageEncryption], case.stamp.embeddings[0].weight
        mine, theirs = (_embedding(w, name, images) for w in (case.weights, case[PublicWeights].weights))
        if mine.shape != theirs.shape:
            raise KeysegError(f'the public weights have no {name} of this shape')
        cosines = unit(mine) @ unit(theirs).T
        table = assign(np.abs(cosines))
        cipher = block_map(images.block, table, cosines[np.arange(len(table)), table] < 0)
        progress(1.0, f'{len(table)} columns')
        return Attempt(model=WithInput(case.model(), encryption_by(cipher, images)).eval())


def _embedding(weights: Mapping[str, Tensor], name: str, images: ImageEncryption) -> Columns:
    """The embedding by the values of a block (3 p p, D), numbered as a cipher does: red first, colours together."""
    weight = weights.get(name, torch.empty(0, 3, 0, 0)).detach().cpu().double()
    red_first = weight if images.pixels.turned else weight.flip(1)
    return np.asarray(red_first.permute(2, 3, 1, 0).flatten(0, 2).numpy())
