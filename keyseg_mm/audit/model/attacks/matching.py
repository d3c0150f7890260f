"""Matching the weights that read a map against public ones.

A reader's weight W' of a protected model and P of the public one are compared by input channel: if W' = T(P, 1) then
channel i of W' is channel ``table[i]`` of P, up to a sign or a turn within a block. Encrypted weights and patch
embeddings are matched value by value and column by column.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from keyseg_mm.audit.engine.budget import Progress
from keyseg_mm.audit.model.attack import Attack, Attempt, Case, PublicWeights, Target, register
from keyseg_mm.audit.model.attacks.points import AttackedPoint, Guesses, array_of, assign, points_of, polar, rotation_of
from keyseg_mm.audit.model.attacks.probing import Columns, facing_columns
from keyseg_mm.audit.model.forward import load_weights
from keyseg_mm.audit.model.input_cipher import ImageEncryption, Pixels, WithInput, from_blocks, in_blocks
from keyseg_mm.errors import KeysegError
from keyseg_mm.maps import ChannelMap
from keyseg_mm.maps.order import places, raw

ROUNDS = 3  # reweighted matchings; the first is nearly always the last that changes anything
_FLOOR = 0.05  # of what is left of a feature: one that agrees by chance must not decide alone


def unit(columns: Columns) -> Columns:
    """Rows of length 1, so that a rescaled channel matches as well as before."""
    return np.asarray(columns / np.maximum(np.linalg.norm(columns, axis=1, keepdims=True), 1e-12))


def by_greed(point: AttackedPoint, ours: Columns, theirs: Columns) -> ChannelMap:
    """Take the best pair, cross out its row and column, and so on; exact for a clear match, and quick."""
    cosine = unit(ours) @ unit(theirs).T
    size = np.abs(cosine) if point.signed else cosine
    matrix, free = np.zeros_like(cosine), np.ones((2, len(size)), dtype=bool)
    for i, j in zip(*np.unravel_index(np.argsort(-size, axis=None), size.shape)):
        if free[0, i] and free[1, j]:
            matrix[i, j] = np.copysign(1.0, cosine[i, j]) if point.signed else 1.0
            free[0, i] = free[1, j] = False
    return point.round(matrix)


def by_assignment(point: AttackedPoint, ours: Columns, theirs: Columns) -> ChannelMap:
    """The map of the point's kind with the largest total cosine between matched channels, outlying rows damped."""
    return _damped(lambda a, b: point.round(unit(a) @ unit(b).T), ours, theirs)


def by_procrustes(point: AttackedPoint, ours: Columns, theirs: Columns) -> ChannelMap:
    """The block-diagonal orthogonal matrix that takes the public columns nearest to the protected ones."""
    return _damped(lambda a, b: rotation_of([polar(a[s] @ b[s].T) for s in point.blocks()]), ours, theirs)


def by_kind(point: AttackedPoint, ours: Columns, theirs: Columns) -> ChannelMap:
    """The one of the two that suits the point's kind of map."""
    return (by_procrustes if point.turned else by_assignment)(point, ours, theirs)


def _damped(fit: Callable[[Columns, Columns], ChannelMap], ours: Columns, theirs: Columns) -> ChannelMap:
    """Fit again with outlying features damped (iteratively reweighted least squares).

    Fine-tuning moves some outputs of a layer far and others hardly; those that moved say nothing. The weight of a
    feature falls with its share of the squared differences that the first fit left.
    """
    guess = fit(ours, theirs)
    for _ in range(ROUNDS - 1):
        fitted = array_of(guess) @ theirs
        share = ((ours - fitted) ** 2).sum(0) / ((ours**2 + fitted**2).sum(0) + 1e-12)
        weight = 1 / np.sqrt(share + _FLOOR)
        guess = fit(ours * weight, theirs * weight)
    return guess


def agreement(guess: ChannelMap, ours: Columns, theirs: Columns) -> float:
    """Mean cosine of the channels that a guess matches."""
    return float((unit(ours) * unit(array_of(guess) @ theirs)).sum(1).mean())


class Matching(Attack):
    """Go through the points, one after another, with one way of finding a map from two sets of columns."""

    needs = frozenset({PublicWeights})
    find: Callable[[AttackedPoint, Columns, Columns], ChannelMap]

    def run(self, case: Case, progress: Progress) -> Attempt:
        public = case[PublicWeights].weights
        clock, guesses, points = case.budget.clock(), Guesses(), points_of(case)
        notes: list[str] = []
        trail: list[dict[str, Any]] = []
        for at, point in enumerate(points):
            if clock.out_of_time:
                return Attempt(guesses, exhausted=True, notes='; '.join(notes), trail=trail)
            pair = facing_columns(case, point, public, notes)
            if pair is None:
                notes.append(f'{point.text}: nothing public to match with')
            else:
                guess = guesses[point.text] = type(self).find(point, *pair)
                trail.append({'point': point.text, 'agreement': agreement(guess, *pair)})
            progress((at + 1) / len(points), point.text)
        if trail:
            notes.insert(0, f'mean cosine of matched channels {np.mean([t["agreement"] for t in trail]):.3f}')
        return Attempt(guesses, notes='; '.join(notes), trail=trail)


@register
class GreedyMatching(Matching):
    """Match input channels with public ones by always taking the most similar pair left.

    Needs public weights of the same architecture. The greedy half of the direction attacks: where the protected
    weights have not moved far it finds what the one-to-one assignment finds, and where the two part, the margin is
    thin. A rotation has no pairs; there the pairs only say roughly where its blocks' mass lies.
    """

    name = 'match-greedy'
    title = 'direction matching, greedy'
    source = 'ArrowMatch, USENIX Security 2025'
    cost = 'a sort of c^2 cosines for each point: seconds; no images'
    find = staticmethod(by_greed)


@register
class HungarianMatching(Matching):
    """Match every reader's input channels with those of the public weights, one to one, by direction.

    Needs public weights of the same architecture, from which the protected model was made or fine-tuned. The cosine of
    every pair of input channels is a c x c table; the assignment with the largest total is the guess, by its absolute
    value where the transform may negate (the sign comes with it). Cosines rather than products, so that a channel that
    was rescaled still matches. The matching is repeated with outlying features damped, since fine-tuning moves some
    rows far. An ``out:`` point's readers are found by probing the model. A rotation is answered by Procrustes.
    """

    name = 'match-hungarian'
    title = 'direction matching, one to one'
    source = 'ArrowMatch, USENIX Security 2025; Git Re-Basin, arXiv 2209.04836; GroupCover, ICML 2024'
    cost = 'an assignment for each point, O(c^3): seconds; no images'
    find = staticmethod(by_assignment)


@register
class Procrustes(Matching):
    """Find the orthogonal map between the protected and the public input channels, in closed form.

    Needs public weights of the same architecture. With ``W' = M W`` along the input channels, ``W' W^T = U S V^T``
    gives ``M = U V^T``, the orthogonal matrix nearest in the sense of least squares; for a rotation block by block, as
    the stamp tells the blocks, for other transforms over all channels at once. It is repeated with outlying features
    damped. Of a permutation it finds the same map, less surely than an assignment, where rows outnumber channels.
    """

    name = 'procrustes'
    title = 'orthogonal Procrustes'
    source = 'Schoenemann, Psychometrika 1966; the breaks of ObfuscaTune, arXiv 2407.02960'
    cost = 'a singular value decomposition for each block: seconds; no images'
    find = staticmethod(by_procrustes)


@register
class RankMatching(Attack):
    """Give each tensor's moved values the order of the public ones: the smallest goes where the smallest is there.

    Needs public weights. An order hides where a value belongs and not what it is. Of a model that was fine-tuned from
    public weights each value has moved a little only, so ranks are nearly the same; the result has the public order and
    the protected values. Where a few values are moved, their places are known from the stamp and the magnitudes.
    """

    name = 'rank-matching'
    title = 'values in the order of public weights'
    needs = frozenset({PublicWeights})
    against = frozenset({Target.WEIGHTS})
    kind = 'retrain'
    source = (
        'one-dimensional optimal transport: sorted values match (Villani, 2003); for locks as ArrowMatch for directions'
    )
    cost = 'two sorts of all weights'

    def run(self, case: Case, progress: Progress) -> Attempt:
        public = case[PublicWeights].weights
        weights, matched = dict(case.weights), 0
        for at, entry in enumerate(case.stamp.tensors):
            known, mine = public.get(entry.names[0]), weights[entry.names[0]]
            if known is not None and known.shape == mine.shape:
                weights.update(dict.fromkeys(entry.names, _in_order(mine, known, entry.count)))
                matched += 1
            progress((at + 1) / len(case.stamp.tensors), entry.names[0])
        model = case.build()
        load_weights(model, weights)
        return Attempt(model=model.eval(), notes=f'{matched} of {len(case.stamp.tensors)} tensors are public')


def _in_order(mine: Tensor, known: Tensor, count: int) -> Tensor:
    values, guide = mine.detach().clone().flatten(), known.detach().flatten()
    moved = places(raw(mine), count)
    if moved is None:
        return mine
    ranks = guide[moved].argsort().argsort()
    values[moved] = values[moved].sort().values[ranks]
    return values.view_as(mine)


@register
class MatchPatches(Attack):
    """Line up the columns of the locked patch embedding with those of public weights, and encrypt images by that.

    Needs public weights that the model was fine-tuned from. A lock gives the embedding's columns, one for each value of
    a block, other places and signs; the largest total of absolute cosines tells where each was, and the signs of these
    whether it was negated. That is the cipher of all images, too.
    """

    name = 'match-patches'
    title = 'patch embedding matched to public weights'
    needs = frozenset({PublicWeights})
    against = frozenset({Target.IMAGES})
    kind = 'retrain'
    source = 'ArrowMatch (USENIX Security 2025), on patch embeddings'
    cost = 'one assignment of 3 p p columns for patches of p'

    @classmethod
    def possible(cls, case: Case) -> bool:
        return super().possible(case) and bool(case.stamp.embeddings)

    def run(self, case: Case, progress: Progress) -> Attempt:
        images, public = case[ImageEncryption], case[PublicWeights].weights
        name, pixels = case.stamp.embeddings[0].weight, images.pixels
        mine, theirs = (_embedding(weights, name, pixels) for weights in (case.weights, public))
        if mine.shape != theirs.shape:
            raise KeysegError(f'the public weights have no {name} of this shape')
        cosines = unit(mine) @ unit(theirs).T
        table = assign(np.abs(cosines))
        matched = cosines[np.arange(len(table)), table]
        progress(1.0, f'{len(table)} columns')
        change = _cipher(table, matched < 0, images.block, pixels)
        notes = f'mean cosine of the matched columns {np.abs(matched).mean():.2f}'
        return Attempt(model=WithInput(case.model(), change).eval(), notes=notes)


def _embedding(weights: Mapping[str, Tensor], name: str, pixels: Pixels) -> Columns:
    """The embedding by the values of a block (3 p p, D), in the order in which the bytes of an image come."""
    weight = weights.get(name, torch.empty(0, 3, 0, 0)).detach().cpu().double()
    return np.asarray((weight.flip(1) if pixels.turned else weight).flatten(1).T.numpy())


def _cipher(
    table: NDArray[np.int64], negated: NDArray[np.bool_], block: int, pixels: Pixels
) -> Callable[[Tensor], Tensor]:
    """An encryption of images as the attacker believes it to be."""

    def encrypt(images: Tensor) -> Tensor:
        values = pixels.values(images).round().clamp(0, 255)  # as files have them
        blocks, shape = in_blocks(values, block)
        mixed = blocks[..., torch.from_numpy(table).to(images.device)]
        mixed = torch.where(torch.from_numpy(negated).to(images.device), 255 - mixed, mixed)
        return pixels.normalised(from_blocks(mixed, shape, block, values))

    return encrypt
