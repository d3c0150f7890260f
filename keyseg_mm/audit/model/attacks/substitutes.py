"""Substitutes for the key: something learnable where the encryption would be, trained on labelled photos.

All weights stay as they are, so few photos suffice: what is learnt is only the map that the weights expect. After Chen
et al., CVPR 2023, who so forge passports.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import ClassVar

import numpy as np
from torch import nn

from keyseg_mm.audit.engine.budget import Progress
from keyseg_mm.audit.model.attack import Attack, Attempt, Case, LabelledPhotos, Target, register
from keyseg_mm.audit.model.attacks.points import points_of
from keyseg_mm.audit.model.attacks.standins import (
    PARTS,
    STARTS,
    FreeMatrix,
    SoftMap,
    block_stand_in,
    image_stand_in,
    stand_ins_of,
    with_stand_ins,
)
from keyseg_mm.audit.model.input_cipher import ImageEncryption, WithInput
from keyseg_mm.audit.model.training import Recipe, cross_entropy, train

_PASSPORTS = 'Chen et al., CVPR 2023 (ambiguity attack on passports)'


class Substitute(Attack):
    """Learn something where the encryption would be, from the better of two starts.

    A fifth of the steps tries both, nothing encrypted and every encryption as likely; the better goes on.
    """

    needs = frozenset({LabelledPhotos})
    source = _PASSPORTS
    cost = 'as long as training for the same steps'
    lr: ClassVar[float] = 0.01
    learnt: ClassVar[str] = PARTS  # prefix of the parameters that learn

    def prepare(self, case: Case, start: str) -> nn.Module:
        """The case's model with what is to be learnt in its place."""
        return with_stand_ins(case, points_of(case), partial(FreeMatrix, start=start))

    def recipe(self, case: Case, steps: int) -> Recipe:
        """How to train for some steps."""
        return Recipe(steps, self.lr, lambda name: name.startswith(self.learnt), cross_entropy, weight_decay=0.0)

    def run(self, case: Case, progress: Progress) -> Attempt:
        clock, photos, tries = case.budget.clock(), case[LabelledPhotos], []

        def tell(share: float, words: str) -> None:
            progress(clock.share, words)

        for start in STARTS:
            model = self.prepare(case, start)
            recipe = self.recipe(case, max(1, case.budget.steps // 10))
            tries.append((train(model, photos, recipe, clock, tell, case.seed).last, model))
        first, model = min(tries, key=lambda one: one[0])
        before = copy.deepcopy(model.state_dict())
        rest = self.recipe(case, case.budget.steps - clock.steps)
        if not train(model, photos, rest, clock, tell, case.seed + 1).last <= first:  # one that diverged gives nan
            model.load_state_dict(before)
        return Attempt(model=model, exhausted=clock.out_of_time)


@register
class SubstituteLayer(Substitute):
    """Put a learnable c x c matrix where each encryptor would be, and train nothing but these.

    The matrices stay free, and are no guess at the key: they may make up for what could not be found of it.
    """

    name = 'substitute-layer'
    title = 'substitute key layers, jointly'
    lr = 0.02


@register
class SubstituteSinkhorn(Substitute):
    """Learn a doubly stochastic matrix at every point and cool it down to a permutation.

    The search stays in the hull of the key's own kind, so that the final rounding loses little. Signs are soft signs; a
    rotation is learned as a matrix exponential within its blocks. All points learn together.
    """

    name = 'substitute-sinkhorn'
    title = 'soft permutations by Sinkhorn'
    source = 'Pena et al., Sinkhorn Re-Basin, CVPR 2023'
    cost = 'as long as training for the same steps, and in each 20 normalisations of every c x c table'
    lr = 0.03

    def run(self, case: Case, progress: Progress) -> Attempt:
        rng, photos = np.random.default_rng(case.seed), case[LabelledPhotos]
        model = with_stand_ins(case, points_of(case), partial(SoftMap, rng=rng))

        def cool(share: float, words: str) -> None:
            for part in stand_ins_of(model):
                part.anneal(share)
            progress(share, words)

        course = train(model, photos, self.recipe(case, case.budget.steps), case.budget.clock(), cool, case.seed)
        return Attempt(
            {part.point.entry.point: part.rounded() for part in stand_ins_of(model)}, exhausted=course.exhausted
        )


@register
class SubstituteBlocks(Substitute):
    """Put a learnable map of the blocks where each encryptor would be, and train nothing but these.

    A shuffle of a block of b by b positions and c channels is a matrix of c b b values to a side, a negative/positive
    transform a scale for each of them. Blocks of more than 4096 values get scales only.
    """

    name = 'substitute-blocks'
    title = 'substitute block layers, jointly'
    kind = 'retrain'
    against = frozenset({Target.BLOCKS})

    def prepare(self, case: Case, start: str) -> nn.Module:
        return with_stand_ins(case, points_of(case), partial(block_stand_in, start=start))


@register
class SubstituteCipher(Substitute):
    """Put something learnable where the images would be encrypted, and train nothing but that, on plain images.

    It is an affine map of a block's values for SHF and for patch embeddings, scales and offsets for NP, and a table of
    bytes with a choice of places for FFX.
    """

    name = 'substitute-cipher'
    title = 'a learnt substitute for the encryption of images'
    kind = 'retrain'
    against = frozenset({Target.IMAGES})
    lr = 0.02
    learnt = 'change.'

    def prepare(self, case: Case, start: str) -> nn.Module:
        return WithInput(case.model(), image_stand_in(case[ImageEncryption], start))
