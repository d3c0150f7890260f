"""Two views of one secret: what entered and left the encryptors in a run, and two protected files of one model."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from keyseg_mm.audit.engine.budget import Progress
from keyseg_mm.audit.model.attack import Attack, Attempt, Case, Recording, SecondFile, register
from keyseg_mm.audit.model.attacks.matching import match
from keyseg_mm.audit.model.attacks.points import AttackedPoint, Guesses, array_of, points_of
from keyseg_mm.audit.model.attacks.probing import Columns, facing_columns, readers_of
from keyseg_mm.maps import ChannelMap

POSITIONS = 8192  # of a map that are compared; more tell no more


@register
class RecordedPairs(Attack):
    """Read the key off the maps before and after an encryptor, as anybody can record them who may run the model.

    A permutation is found by comparing every channel that left with every one that entered, a signed one likewise up
    to the sign, a rotation by Procrustes block by block. Exact from one image, but for channels that are zero
    everywhere, which are all alike and do not matter.
    """

    name = 'recorded-pairs'
    title = 'recorded input and output of the encryptors'
    needs = frozenset({Recording})
    source = 'key extraction from HPNN, DAC 2024'
    cost = 'a matrix product for each point: seconds'

    def run(self, case: Case, progress: Progress) -> Attempt:
        recorded, guesses, points = case[Recording].pairs, Guesses(), points_of(case)
        for at, point in enumerate(points):
            if point.text in recorded:
                entered, left = (_channels(case, point, x) for x in recorded[point.text])
                guesses[point.text] = _between(point, entered, left)
            progress((at + 1) / len(points), point.text)
        return Attempt(guesses, images_used=1)


def _between(point: AttackedPoint, entered: Columns, left: Columns) -> ChannelMap:
    """The map between two recordings, both (channels, positions)."""
    products = left @ entered.T
    if point.turned:
        return point.round(products)
    size = np.abs(products) if point.signed else products
    apart = (left**2).sum(1)[:, None] + (entered**2).sum(1)[None] - 2 * size  # squared distances of channels
    near = apart.max() + 1 - apart
    return point.round(np.copysign(near, products) if point.signed else near)


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

    At a point that the second one leaves alone its weights serve as public ones, and the key falls as it does to
    direction matching. At a point that both protect, the matching gives the relative map ``T1 T2^-1`` and no more,
    which is no guess at either key: it is reported, not handed in. It is the identity where one key met one salt
    twice, and then whatever breaks one file breaks the other.
    """

    name = 'two-files'
    title = 'two protected files against each other'
    needs = frozenset({SecondFile})
    source = 'collusion of customers, arXiv 2602.11088'
    cost = 'an assignment for each point: seconds; no images'

    def run(self, case: Case, progress: Progress) -> Attempt:
        second, guesses, points = case[SecondFile], Guesses(), points_of(case)
        protected, alike = {entry.point for entry in second.stamp.maps}, 0
        for at, point in enumerate(points):
            pair = facing_columns(case, point, second.weights)
            progress((at + 1) / len(points), point.text)
            if pair is None:
                continue
            relative = match(point, *pair)
            # the second file may protect the layers that read this map under another name
            if not protected & {point.text, *(f'in:{name}' for name, _ in readers_of(case, point))}:
                guesses[point.text] = relative
            elif (np.diag(array_of(relative)) > 0.99).all():
                alike += 1
        words = f'the second file leaves {len(guesses)} of {len(points)} points open; at {alike} both have the same map'
        return Attempt(guesses, notes=words)
