"""What is to be had without breaking anything: no attack counts for more than it exceeds these."""

from __future__ import annotations

import numpy as np

from keyseg_mm.audit.engine.attack import Progress
from keyseg_mm.audit.engine.grants import granted
from keyseg_mm.audit.images.attack import Restored, Restoring
from keyseg_mm.audit.images.attacks.statistics import traces
from keyseg_mm.audit.images.case import ImageCase
from keyseg_mm.audit.images.scheme import Images

_HERE = 'control'
_GREY = 118  # the grey that a meter takes for the mean of a scene (18 % reflectance) in 8-bit sRGB


class AsItIs(Restoring):
    """The encrypted images, looked at as they are."""

    name, title, source, cost = 'as-is', 'the encrypted image as it is', _HERE, 'none'

    def run(self, case: ImageCase, progress: Progress) -> Restored:
        """Hand them back."""
        return Restored(case.encrypted.copy())


class Flat(Restoring):
    """One colour everywhere: the mean of the attacker's photos, or mid-grey where he has none."""

    name, title, source, cost = 'flat', 'one colour everywhere', _HERE, 'none'
    helped_by = frozenset({'public'})

    def run(self, case: ImageCase, progress: Progress) -> Restored:
        """Fill images with it."""
        colour = np.full(3, _GREY) if case.public is None else case.public.mean((0, 1, 2))
        return Restored(np.broadcast_to(colour.round().astype(np.uint8), case.encrypted.shape).copy())


class MeanPhoto(Restoring):
    """The mean of the attacker's photos, pixel by pixel."""

    name, title, source, cost = 'mean-photo', 'the mean of his photos', _HERE, 'none'
    needs = frozenset({'public'})

    def run(self, case: ImageCase, progress: Progress) -> Restored:
        """Hand back the same for every image."""
        mean = _public(case).mean(0).round().astype(np.uint8)
        return Restored(np.broadcast_to(mean, case.encrypted.shape).copy())


class NearestPhoto(Restoring):
    """Of the attacker's photos, for every image the one whose blocks are most like it in what no key changes."""

    name, title, source, cost = 'nearest-photo', 'the most similar of his photos', _HERE, 'none'
    needs = frozenset({'public'})

    def run(self, case: ImageCase, progress: Progress) -> Restored:
        """Look each one up."""
        theirs, own = (traces(images, case.scheme) for images in (case.encrypted, _public(case)))
        nearest = [int(((own - trace) ** 2).sum((1, 2, 3)).argmin()) for trace in theirs]
        return Restored(_public(case)[nearest].copy())


CONTROLS: dict[str, type[Restoring]] = {cls.name: cls for cls in (AsItIs, Flat, MeanPhoto, NearestPhoto)}


def _public(case: ImageCase) -> Images:
    return granted(case.public)
