"""Substitutes for the key: something learnable where the encryption would be, trained on labelled photos.

All weights stay as they are, so few photos suffice: what is learnt is only the map that the weights expect.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import ClassVar

import numpy as np
from torch import nn

from keyseg_mm.audit.engine.budget import Progress
from keyseg_mm.audit.model.attack import Attack, Attempt, Case, LabelledPhotos, OtherClasses, Target, register
from keyseg_mm.audit.model.attacks.finetuning import head_names, part_of
from keyseg_mm.audit.model.attacks.fitness import Fitness, split
from keyseg_mm.audit.model.attacks.points import Guesses, points_of
from keyseg_mm.audit.model.attacks.probing import firing_order
from keyseg_mm.audit.model.attacks.standins import (
    PARTS,
    STARTS,
    FreeMatrix,
    MatrixStandIn,
    SoftMap,
    block_stand_in,
    image_stand_in,
    stand_ins_of,
    with_stand_ins,
)
from keyseg_mm.audit.model.forward import MatrixMap
from keyseg_mm.audit.model.input_cipher import ImageEncryption, WithInput
from keyseg_mm.audit.model.training import Recipe, cross_entropy, segmentation_loss, train

_PASSPORTS = 'Chen et al., CVPR 2023 (ambiguity attack on passports)'


def recipe_of(steps: int, lr: float, learnt: str = PARTS) -> Recipe:
    """A training of nothing but what is learnt in the model's place, by the prefix of its parameters."""
    return Recipe(steps, lr, lambda name: name.startswith(learnt), cross_entropy, weight_decay=0.0)


class Substitute(Attack):
    """Learn something where the encryption would be, from the better of two starts.

    A fifth of the steps tries both, nothing encrypted and every encryption as likely; the better goes on.
    """

    needs = frozenset({LabelledPhotos})
    cost = 'as long as training for the same steps'
    lr: ClassVar[float] = 0.02
    learnt: ClassVar[str] = PARTS  # prefix of the parameters that learn

    def prepare(self, case: Case, start: str) -> nn.Module:
        """The case's model with what is to be learnt in its place."""
        raise NotImplementedError

    def finish(self, case: Case, model: nn.Module, held: LabelledPhotos) -> Attempt:
        """What to hand in of a trained model; photos that it has not seen may decide."""
        return Attempt(model=model)

    def photos(self, case: Case) -> tuple[LabelledPhotos, LabelledPhotos]:
        """Photos to learn from, and others for :meth:`finish`."""
        return case[LabelledPhotos], case[LabelledPhotos]

    def recipe(self, case: Case, steps: int) -> Recipe:
        """How to train for some steps."""
        return recipe_of(steps, self.lr, self.learnt)

    def run(self, case: Case, progress: Progress) -> Attempt:
        clock, steps, (photos, held) = case.budget.clock(), case.budget.steps, self.photos(case)
        tries = []
        for at, start in enumerate(STARTS):
            model = self.prepare(case, start)
            told = part_of(progress, 0.1 * at, 0.1)
            course = train(model, photos, self.recipe(case, max(1, steps // 10)), clock, told, case.seed)
            tries.append((course.last, start, model))
        first, start, model = min(tries, key=lambda one: one[0])
        before = copy.deepcopy(model.state_dict())
        rest = self.recipe(case, steps - clock.steps)
        course = train(model, photos, rest, clock, part_of(progress, 0.2, 0.8), case.seed + 1)
        if not course.last <= first:  # a training that diverged gives nan
            model.load_state_dict(before)
        attempt = self.finish(case, model, held)
        words = f'started from {start}, loss {first:.2f} after a tenth of the steps, {course.last:.2f} at last'
        attempt.notes = '; '.join(filter(None, (words, attempt.notes)))
        attempt.images_used, attempt.exhausted = len(case[LabelledPhotos]), clock.out_of_time
        attempt.trail = course.trail
        return attempt


@register
class SubstituteLayer(Substitute):
    """Put a learnable c x c matrix where each encryptor would be, and train nothing but these.

    Needs labelled images. The matrices start from the identity or from the uniform matrix, and learn by Adam on the
    cross entropy. In the end each is rounded to the nearest map of the stamp's kind, and the rounded or the free maps
    are kept, as photos kept back decide.
    """

    name = 'substitute-layer'
    title = 'substitute key layers, jointly'
    source = _PASSPORTS

    def prepare(self, case: Case, start: str) -> nn.Module:
        return with_stand_ins(case, firing_order(case, points_of(case)), partial(FreeMatrix, start=start))

    def photos(self, case: Case) -> tuple[LabelledPhotos, LabelledPhotos]:
        return _halves(case)

    def finish(self, case: Case, model: nn.Module, held: LabelledPhotos) -> Attempt:
        guesses, words = choose(case, stand_ins_of(model), held)
        return Attempt(guesses, notes=words)


@register
class SubstituteBlocks(Substitute):
    """Put a learnable map of the blocks where each encryptor would be, and train nothing but these.

    Needs labelled images. A shuffle of a block of b by b positions and c channels is a matrix of c b b values to a
    side, a negative/positive transform a scale for each of them; the weights stay as they are.
    Blocks of more than 4096 values get scales only.
    """

    name = 'substitute-blocks'
    title = 'substitute block layers, jointly'
    against = frozenset({Target.BLOCKS})
    kind = 'retrain'
    source = f'{_PASSPORTS}, on blocks'
    lr = 0.01

    def prepare(self, case: Case, start: str) -> nn.Module:
        return with_stand_ins(case, firing_order(case, points_of(case)), partial(block_stand_in, start=start))


@register
class SubstituteCipher(Substitute):
    """Put something learnable where the images would be encrypted, and train nothing but that.

    Needs labelled plain images. The weights stay as they are: only what they expect of a block is learnt, an affine map
    of a block's values for SHF and for patch embeddings, scales and offsets for NP, and a table of bytes with a choice
    of places for FFX.
    """

    name = 'substitute-cipher'
    title = 'a learnt substitute for the encryption of images'
    against = frozenset({Target.IMAGES})
    kind = 'retrain'
    source = f'{_PASSPORTS}, on images'
    learnt = 'change.'

    def prepare(self, case: Case, start: str) -> nn.Module:
        return WithInput(case.model(), image_stand_in(case[ImageEncryption], start))


@register
class TransferSubstitute(Substitute):
    """Put a learnable c x c matrix where each encryptor would be, and train these and the head for other classes.

    Needs labelled images of another data set. The backbone stays as it is, maps and head learn: where the maps come
    near the key, the thief has the backbone's features as the key's holder has them. The maps stay free; rounded ones
    are handed in only to tell how much of the key they hold.
    """

    name = 'transfer-substitute'
    title = 'substitute key layers and a new head'
    needs = frozenset({LabelledPhotos, OtherClasses})
    source = f'{_PASSPORTS}, with a head of its own'
    kind = 'retrain'
    transfers = True
    lr = 0.01

    def prepare(self, case: Case, start: str) -> nn.Module:
        return with_stand_ins(case, firing_order(case, points_of(case)), partial(FreeMatrix, start=start))

    def recipe(self, case: Case, steps: int) -> Recipe:
        head, recipe = head_names(case.build()) | set(case.classifier), super().recipe(case, steps)
        return dataclasses.replace(
            recipe, learns=lambda name: name in head or recipe.learns(name), loss=segmentation_loss
        )

    def finish(self, case: Case, model: nn.Module, held: LabelledPhotos) -> Attempt:
        guesses = {part.point.text: part.rounded() for part in stand_ins_of(model)}
        return Attempt(guesses, model, notes='the maps are scored as learnt, and rounded to compare them with the key')


@register
class SubstituteSinkhorn(Attack):
    """Learn a doubly stochastic matrix at every point and cool it down to a permutation.

    Needs labelled images. Scores of c x c become doubly stochastic by Sinkhorn's iterations, softly at first and nearly
    hard in the end, so that the search stays in the hull of the key's own kind and the final rounding loses little.
    Signs are soft signs; a rotation is learned as a matrix exponential within its blocks. All points learn together.
    """

    name = 'substitute-sinkhorn'
    title = 'soft permutations by Sinkhorn'
    needs = frozenset({LabelledPhotos})
    source = 'Pena et al., Sinkhorn Re-Basin, CVPR 2023'
    cost = 'as long as training for the same steps, and in each 20 normalisations of every c x c table'
    LR = 0.03

    def run(self, case: Case, progress: Progress) -> Attempt:
        (photos, held), rng = _halves(case), np.random.default_rng(case.seed)
        model = with_stand_ins(case, firing_order(case, points_of(case)), partial(SoftMap, rng=rng))
        parts = stand_ins_of(model)

        def cool(share: float, words: str) -> None:
            for part in parts:
                part.anneal(share)
            progress(share, words)

        recipe = recipe_of(case.budget.steps, self.LR)
        course = train(model, photos, recipe, case.budget.clock(), cool, case.seed)
        guesses, words = choose(case, parts, held)
        return Attempt(
            guesses, None, len(case[LabelledPhotos]), exhausted=course.exhausted, notes=words, trail=course.trail
        )


def choose(case: Case, parts: Sequence[MatrixStandIn], held: LabelledPhotos) -> tuple[Guesses, str]:
    """The learnt maps as they are or rounded to the stamp's kind, whichever does better on photos kept back.

    A rounded map is what the key is known to be; a free one may make up for what could not be found.
    """
    fitness = Fitness(case, held, [part.point for part in parts])
    maps = {'rounded': {part.point.text: part.rounded() for part in parts}, 'free': _free(parts)}
    scores = {name: fitness(guesses) for name, guesses in maps.items()}
    best = 'rounded' if scores['rounded'] <= scores['free'] * 1.02 else 'free'
    words = f'held-back cross entropy {scores["rounded"]:.2f} rounded, {scores["free"]:.2f} free: kept the {best} maps'
    return maps[best], words


def _free(parts: Sequence[MatrixStandIn]) -> Guesses:
    return {part.point.text: MatrixMap(part.matrix().detach()) for part in parts}


def _halves(case: Case) -> tuple[LabelledPhotos, LabelledPhotos]:
    """The case's labelled photos, to learn from and to choose by."""
    return split(case[LabelledPhotos], case.seed)
