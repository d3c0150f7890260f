"""Figures for an attempt: mIoU, fidelity to the authorised output, and the share of the key that was recovered.

Pixel accuracy alone is never shown: an all-background guess scores high. Fidelity comes as agreement with the
authorised output and as Cohen's kappa (Cohen 1960), which takes the agreement off that chance would give.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from keyseg_mm.audit.model.attack import IGNORED, LabelledPhotos
from keyseg_mm.entries import MapEntry
from keyseg_mm.maps import ChannelMap

#: A row of a guessed rotation counts as right from this cosine on.
RIGHT_COSINE = 0.9


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
    """Counts (classes, classes): rows are the truth, columns what was said. Ignored pixels of the truth do not count.

    Args:
        truth: label maps of any shape.
        said: of the same shape.
        num_classes: number of classes.
        ignored: label that does not count.
    """
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
    """Score label maps.

    Args:
        said: label maps (N, H, W) of the attacked model.
        photos: the held-out photos.
        authorised: label maps of the authorised model.
        num_classes: number of classes.
    """
    against_truth = confusion(photos.labels, said, num_classes)
    against_right = confusion(authorised, said, num_classes, ignored=-1)
    agreement = 100.0 * float(np.trace(against_right)) / float(against_right.sum())
    return Score(miou(against_truth), agreement, kappa(against_right))


def recovery(guesses: Mapping[str, Any], truth: Mapping[str, Any], entries: Sequence[MapEntry]) -> float:
    """Share of right rows of the key, over all points; points without a guess count as wrong.

    Args:
        guesses: channel maps by point; may lack some.
        truth: by point, all of them.
        entries: of the stamp.
    """
    guessed = [e for e in entries if e.point in guesses]
    right = sum(right_share(guesses[e.point], truth[e.point]) * e.channels for e in guessed)
    return right / sum(e.channels for e in entries)


def right_share(guess: ChannelMap, truth: ChannelMap) -> float:
    """Share of rows of a guess that are right: alike, or, of rotations, with a cosine of 0.9 or more."""
    return float(((guess.matrix() * truth.matrix()).sum(1) > RIGHT_COSINE).double().mean())
