"""What is to be had without breaking anything: no attack counts for more than it exceeds these."""

from __future__ import annotations

import numpy as np

from keyseg_mm.audit.engine.budget import Progress
from keyseg_mm.audit.images.attack import CONTROLS, ImageAttack, ImageCase, OwnPhotos, Restored

_GREY = 118  # the grey that a meter takes for the mean of a scene (18 % reflectance) in 8-bit sRGB


class Control(ImageAttack):
    """Base of the controls."""

    source, cost = 'control', 'none'


@CONTROLS.register
class AsItIs(Control):
    """The encrypted images, looked at as they are."""

    name, title = 'as-is', 'the encrypted image as it is'

    def run(self, case: ImageCase, progress: Progress) -> Restored:
        return Restored(case.encrypted.copy())


@CONTROLS.register
class Flat(Control):
    """One colour everywhere: the mean of the attacker's photos, or mid-grey where there are none."""

    name, title = 'flat', 'one colour everywhere'
    helped_by = frozenset({OwnPhotos})

    def run(self, case: ImageCase, progress: Progress) -> Restored:
        colour = np.full(3, _GREY) if case.photos is None else case.photos.mean((0, 1, 2))
        return Restored(np.broadcast_to(colour.round().astype(np.uint8), case.encrypted.shape).copy())


@CONTROLS.register
class MeanPhoto(Control):
    """The mean of the attacker's photos, pixel by pixel, for every image."""

    name, title = 'mean-photo', "the mean of the attacker's photos"
    needs = frozenset({OwnPhotos})

    def run(self, case: ImageCase, progress: Progress) -> Restored:
        mean = case[OwnPhotos].images.mean(0).round().astype(np.uint8)
        return Restored(np.broadcast_to(mean, case.encrypted.shape).copy())
