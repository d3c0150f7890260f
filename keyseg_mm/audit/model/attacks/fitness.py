"""How well guesses do on an attacker's few labelled photos."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from keyseg_mm.audit.model.attack import Case, LabelledPhotos
from keyseg_mm.audit.model.attacks.points import AttackedPoint, Guesses, Matrix
from keyseg_mm.audit.model.attacks.probing import place
from keyseg_mm.audit.model.forward import MatrixMap, predict
from keyseg_mm.audit.model.scoring import confusion, miou
from keyseg_mm.audit.model.training import cross_entropy
from keyseg_mm.maps import ChannelMap

_BATCH = 4


def split(photos: LabelledPhotos, seed: int, share: float = 0.25) -> tuple[LabelledPhotos, LabelledPhotos]:
    """Photos to learn from and others to choose by; one photo serves for both."""
    order = np.random.default_rng(seed).permutation(len(photos)).tolist()
    held = round(len(order) * share)
    return (photos.take(order[held:]), photos.take(order[:held])) if held else (photos, photos)


class Fitness:
    """Cross entropy of guesses on a fixed set of photos, with the model built once.

    It moves where mIoU stands still.

    Args:
        case: the case.
        photos: labelled.
        points: those that may have guesses.
    """

    def __init__(self, case: Case, photos: LabelledPhotos, points: list[AttackedPoint]) -> None:
        self.case, self.photos, self.model = case, photos, case.model()
        self.guesses: Mapping[str, ChannelMap] = {}
        for point in points:
            place(case, self.model, point, self._at(point.text))

    def _at(self, text: str) -> Callable[[Tensor, int], Tensor]:
        return lambda x, dim: self.guesses[text](x, dim) if text in self.guesses else x

    @torch.no_grad()
    def __call__(self, guesses: Mapping[str, ChannelMap]) -> float:
        """Cross entropy with these guesses."""
        self.guesses = guesses
        return float(np.mean([float(self._loss(at)) for at in range(0, len(self.photos), _BATCH)]))

    def slope(self, guesses: Guesses, point: AttackedPoint) -> Matrix:
        """The gradient of the cross entropy by the (c, c) matrix of one guess.

        Zero where only auxiliary heads read the point's map.
        """
        matrix = guesses[point.text].matrix().to(self.photos.images).requires_grad_(True)
        self.guesses = {**guesses, point.text: MatrixMap(matrix)}
        with torch.enable_grad():
            (slope,) = torch.autograd.grad(self._loss(0), [matrix], materialize_grads=True)
        return np.asarray(slope.cpu().double().numpy())

    def miou(self, guesses: Mapping[str, ChannelMap]) -> float:
        """mIoU, percent, with these guesses."""
        self.guesses, photos = guesses, self.photos
        said = predict(self.model, photos.images)
        return miou(confusion(photos.labels, said, self.case.num_classes, photos.ignore_index))

    def _loss(self, at: int) -> Tensor:
        part = self.photos.take(slice(at, at + _BATCH))
        return cross_entropy(self.model, part.images, part.labels, part.ignore_index)
