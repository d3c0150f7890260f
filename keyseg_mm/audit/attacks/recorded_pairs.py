"""What entered and left the encryptors in one authorised run."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from keyseg_mm.audit.attack import Attack, Attempt, Progress, register
from keyseg_mm.audit.attacks._spots import Spot, assign, polar, rotation_of, spots_of
from keyseg_mm.audit.case import Case
from keyseg_mm.maps import ChannelRotation, SignedChannelPermutation
from keyseg_mm.maps.base import ChannelMap

POSITIONS = 8192  # of a map that are compared; more tell no more


def recover(spot: Spot, entered: NDArray[np.float64], left: NDArray[np.float64]) -> ChannelMap:
    """The map between two recordings, both (channels, positions)."""
    if spot.family == ChannelRotation.__name__:
        return rotation_of([polar(left[b] @ entered[b].T) for b in spot.blocks()])
    lengths = (left**2).sum(1)[:, None] + (entered**2).sum(1)[None]
    products = 2 * left @ entered.T
    if not spot.signed:
        return spot.round(products - lengths)
    table = assign(np.maximum(products, -products) - lengths)
    signs = np.where(products[np.arange(len(table)), table] < 0, -1, 1).astype(np.int8)
    return SignedChannelPermutation(table, signs)


@register
class RecordedPairs(Attack):
    """Read the key off the maps before and after an encryptor.

    Needs a recording of one authorised run with a hook on each encryptor, as anybody has who may run the model with the
    key on a machine of his own. A permutation is found by comparing every channel that left with every one that
    entered, a signed one likewise up to the sign, a rotation by Procrustes block by block. Exact from one image, but
    for channels that are zero everywhere, which are all alike and do not matter.

    Costs a matrix product for each point.
    """

    name = 'recorded-pairs'
    title = 'recorded input and output of the encryptors'
    needs = frozenset({'recorded'})
    source = 'key extraction from HPNN, DAC 2024'
    cost = 'seconds'

    def run(self, case: Case, progress: Progress) -> Attempt:
        assert case.recorded is not None
        guesses, trail, spots = {}, [], spots_of(case)
        for at, spot in enumerate(spots):
            if spot.text not in case.recorded:
                continue
            entered, left = (self._flat(case, spot, x) for x in case.recorded[spot.text])
            guess = guesses[spot.text] = recover(spot, entered, left)
            apart = np.abs(guess.matrix().numpy() @ entered - left).max()
            trail.append({'point': spot.text, 'error': float(apart / (np.abs(left).max() + 1e-12))})
            progress((at + 1) / len(spots), spot.text)
        return Attempt(guesses, None, 1, False, f'recordings of {len(guesses)} of {len(spots)} points', trail)

    def _flat(self, case: Case, spot: Spot, x: Tensor) -> NDArray[np.float64]:
        site = (case.sites or {}).get(spot.text)
        dim = site.dim if site else (1 if x.dim() >= 4 and x.shape[1] == spot.channels else -1)
        flat = x.detach().cpu().double().movedim(dim, 0).flatten(1)
        if flat.shape[1] > POSITIONS:
            draw = torch.Generator().manual_seed(case.seed)
            flat = flat[:, torch.randperm(flat.shape[1], generator=draw)[:POSITIONS]]
        return np.asarray(flat.numpy(), dtype=np.float64)
