"""A locked patch embedding matched against public weights."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from keyseg_mm.audit.attack import Attack, Attempt, Progress, register
from keyseg_mm.audit.attacks._spots import assign
from keyseg_mm.audit.case import Case
from keyseg_mm.audit.front import Fronted, Pixels, from_blocks, in_blocks
from keyseg_mm.audit.kinds import IMAGES
from keyseg_mm.errors import KeysegError


@register
class MatchPatches(Attack):
    """Line up the columns of the locked patch embedding with those of public weights, and encrypt images by that.

    Needs public weights that the model was fine-tuned from. A lock gives the embedding's columns, one for each value of
    a block, other places and signs; the largest total of absolute cosines tells where each was, and the signs of these
    whether it was negated. That is the cipher of all images, too.

    Costs one assignment of 3 p p columns for patches of p.
    """

    name = 'match-patches'
    title = 'patch embedding matched to public weights'
    needs = frozenset({'public'})
    against = frozenset({IMAGES})
    kind = 'retrain'
    source = 'ArrowMatch (USENIX Security 2025), on patch embeddings'
    cost = 'one assignment'

    @classmethod
    def possible(cls, case: Case) -> bool:
        return super().possible(case) and case.images is not None and bool(case.images.stamp.embeddings)

    def run(self, case: Case, progress: Progress) -> Attempt:
        assert case.images is not None and case.public is not None and bool(case.images.stamp.embeddings)
        name, block = case.images.stamp.embeddings[0].weight, case.images.block
        known = case.public.get(name)
        if known is None or known.shape != case.weights[name].shape:
            raise KeysegError(f'the public weights have no {name} of this shape')
        mine, theirs = (_columns(w, case.images.pixels.turned) for w in (case.weights[name], known))
        cosines = mine.T @ theirs
        table = assign(np.abs(cosines))
        negated = cosines[np.arange(len(table)), table] < 0
        progress(1.0, f'{len(table)} columns')
        sure = float(np.abs(cosines[np.arange(len(table)), table]).mean())
        front = _Guess(table, negated, block, case.images.pixels)
        return Attempt(
            model=Fronted(case.model(), front).eval(), notes=f'mean cosine of the matched columns {sure:.2f}'
        )


class _Guess:
    """An encryption as the attacker believes it to be."""

    def __init__(self, table: NDArray[np.int64], negated: NDArray[np.bool_], block: int, pixels: Pixels) -> None:
        self.table, self.negated = torch.from_numpy(table), torch.from_numpy(negated)
        self.block, self.pixels = block, pixels

    def __call__(self, images: Tensor) -> Tensor:
        values = self.pixels.values(images).round().clamp(0, 255)  # as files have them
        blocks, shape = in_blocks(values, self.block)
        mixed = blocks[..., self.table.to(images.device)]
        mixed = torch.where(self.negated.to(images.device), 255 - mixed, mixed)
        return self.pixels.normalised(from_blocks(mixed, shape, self.block, values))


def _columns(weight: Tensor, turned: bool) -> NDArray[np.float64]:
    """The embedding's unit columns (D, 3 p p), in the order in which the bytes of an image come."""
    if turned:
        weight = weight.flip(1)
    columns = weight.detach().cpu().double().flatten(1).numpy()
    return np.asarray(columns / np.maximum(np.linalg.norm(columns, axis=0, keepdims=True), 1e-12))
