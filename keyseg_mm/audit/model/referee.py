"""Figures for an attempt: mIoU, fidelity to the authorised output, and the share of the key that was recovered.

Pixel accuracy alone is never shown: an all-background guess scores high. Fidelity comes as agreement with the
authorised output and as Cohen's kappa (Cohen 1960), which takes the agreement off that chance would give.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from keyseg_mm.audit.engine.runner import Check
from keyseg_mm.audit.model.attack import IGNORED, Attempt, Case, LabelledPhotos, Target
from keyseg_mm.audit.model.forward import ImageEncryption, WithInput, encryption_by, predict
from keyseg_mm.audit.report.page import png
from keyseg_mm.bind import Bound, derive_cipher, derive_map
from keyseg_mm.entries import MapEntry
from keyseg_mm.errors import KeyMismatchError
from keyseg_mm.keys.identity import Key
from keyseg_mm.keys.key import wrong_key
from keyseg_mm.keys.secret import Secret
from keyseg_mm.locking.scheme import carry_maps
from keyseg_mm.maps import ChannelMap
from keyseg_mm.maps.base import Map
from keyseg_mm.model.points import Point
from keyseg_mm.runtime.attach import attach
from keyseg_mm.stamp import Stamp

#: A row of a guessed rotation counts as right from this cosine on.
RIGHT_COSINE = 0.9
ROUNDING = 0.1  # percent by which two ways of computing the authorised output may differ
#: A random guess that recovers this much above chance means that the referee's figures cannot be trusted.
_LUCK = 0.15


@dataclass(frozen=True)
class Score:
    """What a model is worth.

    Attributes:
        miou: against the true labels, percent; the mean over classes that occur in them or are predicted.
        agreement: share of pixels on which it says what the authorised model says, percent; None where nobody ran it.
        kappa: Cohen's kappa between the two, -1 to 1; 0 is what chance gives.
        recovery: share of the key that guesses hold; None where there are none, or no rows of a key can be counted.
    """

    miou: float
    agreement: float | None = None
    kappa: float | None = None
    recovery: float | None = None

    def __str__(self) -> str:
        return f'{self.miou:.2f} mIoU'


def confusion(truth: Tensor, said: Tensor, num_classes: int, ignored: int = IGNORED) -> NDArray[np.int64]:
    """Counts (classes, classes): rows are the truth, columns what was said. Ignored pixels do not count."""
    kept = truth != ignored
    index = truth[kept].long() * num_classes + said[kept].long()
    counts = torch.bincount(index, minlength=num_classes**2)[: num_classes**2]
    return counts.reshape(num_classes, num_classes).cpu().numpy().astype(np.int64)


def miou(counts: NDArray[np.int64]) -> float:
    """Mean IoU, percent, from a confusion matrix, as the host's IoUMetric: classes of empty union have no IoU."""
    hit = np.diag(counts).astype(float)
    union = counts.sum(0) + counts.sum(1) - hit
    seen = union > 0
    return float(100.0 * (hit[seen] / union[seen]).mean()) if seen.any() else 0.0


def kappa(counts: NDArray[np.int64]) -> float:
    """Cohen's kappa of a confusion matrix; 1 where both always say the same one class."""
    total = float(counts.sum())
    if not total:
        return 0.0
    agree = float(np.trace(counts)) / total
    chance = float((counts.sum(0) / total) @ (counts.sum(1) / total))
    return 1.0 if chance >= 1.0 else (agree - chance) / (1.0 - chance)


def score(said: Tensor, photos: LabelledPhotos, authorised: Tensor, num_classes: int) -> Score:
    """Score label maps (N, H, W) by the truth of photos, and by what the authorised model says."""
    against_truth = confusion(photos.labels, said, num_classes)
    against_right = confusion(authorised, said, num_classes, ignored=-1)
    agreement = 100.0 * float(np.trace(against_right)) / float(against_right.sum())
    return Score(miou(against_truth), agreement, kappa(against_right))


def recovery(guesses: Mapping[str, Any], truth: Mapping[str, Any], entries: Sequence[MapEntry]) -> float:
    """Share of right rows of the key, over all points; points without a guess count as wrong."""
    guessed = [e for e in entries if e.point in guesses]
    right = sum(right_share(guesses[e.point], truth[e.point]) * e.channels for e in guessed)
    return right / sum(e.channels for e in entries)


def right_share(guess: ChannelMap, truth: ChannelMap) -> float:
    """Share of rows of a guess that are right: alike, or, of rotations, with a cosine of 0.9 or more."""
    return float(((guess.matrix() * truth.matrix()).sum(1) > RIGHT_COSINE).double().mean())


class Referee(Secret):
    """Scores attempts against one protected checkpoint.

    Args:
        key: the true key.
        stamp: as it is in the checkpoint.
        case: of the file alone; its stamp has the points' names in the whole model.
        held_out: labelled photos that no attacker has.
        prefix: of the module that the stamp belongs to, ``''`` for the whole model.

    Attributes:
        case, held_out: as given.
        authorised: label maps that the right key gives on the held-out photos.
        full: the authorised model's own score.

    Raises:
        KeyMismatchError: the key is not the checkpoint's.
    """

    __slots__ = ('case', 'held_out', 'authorised', 'full', '_key', '_stamp', '_prefix', '_maps')
    scores = Score

    def __init__(self, key: Key, stamp: Stamp, case: Case, held_out: LabelledPhotos, prefix: str = '') -> None:
        if key.id != stamp.key_id:
            raise KeyMismatchError(
                f'this checkpoint is protected with key {stamp.key_id}, and the key given is {key.id}: the audit '
                'needs its own key, to know what the right answer is'
            )
        self.case, self.held_out, self._key, self._stamp, self._prefix = case, held_out, key, stamp, prefix
        self._maps = self._maps_of(key)
        self.authorised = predict(self.model_with(key), held_out.images)
        self.full = score(self.authorised, held_out, self.authorised, case.num_classes)

    @property
    def public_id(self) -> str:
        return f'with key {self.case.stamp.key_id}'

    def judge(self, attempt: Attempt) -> tuple[Score, Tensor]:
        """Score an attempt, by the key that it found too where that can be counted (channel maps); and its label maps.

        Raises:
            KeysegError: guesses for points that the stamp does not have.
        """
        model = attempt.model if attempt.model is not None else self.case.model(attempt.guesses)
        labels = predict(model, self.held_out.images)
        found = score(labels, self.held_out, self.authorised, self.case.num_classes)
        if attempt.guesses and self.case.target is Target.MAPS:
            share = recovery(attempt.guesses, self._maps, self.case.stamp.maps)
            found = dataclasses.replace(found, recovery=share)
        return found, labels

    def pictured(self, attempt: Attempt, shown: Sequence[int]) -> tuple[Score, tuple[str, ...]]:
        """The score of :meth:`judge`, and some of the label maps as base64 PNGs."""
        found, labels = self.judge(attempt)
        return found, tuple(png(labels[i]) for i in shown)

    def model_with(self, key: Key) -> nn.Module:
        """The model as the holder of a key runs it: by the package's own encryptors, and not by the path of guesses."""
        case, stamp, model = self.case, self._stamp, self.case.model()
        if case.target is Target.IMAGES:  # it is run on encrypted images, whatever the attacker's are
            return WithInput(model, encryption(key, stamp.salt, case[ImageEncryption])).eval()
        if case.target is Target.WEIGHTS:
            weights: dict[str, Any] = dict(case.weights)
            orders = {name: order.inverse() for name, order in Bound(key, stamp).value_orders().items()}
            carry_maps(weights, orders, f'{self._prefix}.' if self._prefix else '')
            model.load_state_dict(weights)
            return model.eval()
        pairs = zip(stamp.maps, case.stamp.maps)
        own = [dataclasses.replace(case.sites[ours.point], point=Point.parse(theirs.point)) for theirs, ours in pairs]
        attach(model.get_submodule(self._prefix), key, own, stamp.maps, salt=stamp.salt)
        return model.eval()

    def positive_control(self) -> Check[Score]:
        """The true key, as an attempt: it must recover all that there is, and score full marks."""
        found = self.judge(self._attempt(self._key, self._maps))[0]
        same = abs(found.miou - self.full.miou) < ROUNDING and (found.agreement or 0.0) > 100.0 - ROUNDING
        return Check(found, same and found.recovery in (None, 1.0))

    def negative_control(self, seed: int) -> Check[Score]:
        """A key drawn at random must not; of channel maps it may recover about what chance does, one row in c."""
        wrong = wrong_key(str(seed))
        found = self.judge(self._attempt(wrong, self._maps_of(wrong)))[0]
        if found.recovery is None:
            return Check(found, (found.agreement or 0.0) < 100.0 - ROUNDING)
        channels = [entry.channels for entry in self.case.stamp.maps]
        chance = len(channels) / sum(channels)  # a random permutation has one fixed point on average, and variance one
        return Check(found, found.recovery <= chance + 4 * len(channels) ** 0.5 / sum(channels) + _LUCK)

    def _attempt(self, key: Key, maps: dict[str, Map]) -> Attempt:
        return Attempt(guesses=dict(maps)) if maps else Attempt(model=self.model_with(key))

    def _maps_of(self, key: Key) -> dict[str, Map]:
        """The maps of a key, by point with its name in the whole model; tables go by the stamp's own names."""
        pairs = zip(self._stamp.maps, self.case.stamp.maps)
        return {ours.point: derive_map(key, self._stamp.salt, theirs) for theirs, ours in pairs}


def encryption(key: Key, salt: bytes, images: ImageEncryption) -> Callable[[Tensor], Tensor]:
    """The true encryption of images, on normalised ones, rounded to bytes as files and cameras have them."""
    return encryption_by(derive_cipher(key, salt, images.entry), images)
