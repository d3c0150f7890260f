"""What is to be had without breaking anything: no attack counts for more than it exceeds these."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from keyseg_mm.audit.engine.budget import Progress
from keyseg_mm.audit.images.attack import CONTROLS, ImageAttack, ImageCase, OwnPhotos, Restored
from keyseg_mm.audit.images.scheme import Images, Scheme, cut

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
        colour = case[OwnPhotos].images.mean((0, 1, 2)) if OwnPhotos in case else np.full(3, _GREY)
        return Restored(np.broadcast_to(colour.round().astype(np.uint8), case.encrypted.shape).copy())


@CONTROLS.register
class MeanPhoto(Control):
    """The mean of the attacker's photos, pixel by pixel, for every image."""

    name, title = 'mean-photo', "the mean of the attacker's photos"
    needs = frozenset({OwnPhotos})

    def run(self, case: ImageCase, progress: Progress) -> Restored:
        mean = case[OwnPhotos].images.mean(0).round().astype(np.uint8)
        return Restored(np.broadcast_to(mean, case.encrypted.shape).copy())


@CONTROLS.register
class NearestPhoto(Control):
    """Of the attacker's photos, for every image the one whose blocks are most like it in what no key changes."""

    name, title = 'nearest-photo', "the most similar of the attacker's photos"
    needs = frozenset({OwnPhotos})

    def run(self, case: ImageCase, progress: Progress) -> Restored:
        photos = case[OwnPhotos].images
        theirs, own = (_traces(images, case.scheme) for images in (case.encrypted, photos))
        nearest = [int(((own - trace) ** 2).sum((1, 2, 3)).argmin()) for trace in theirs]
        return Restored(photos[nearest].copy())


def _traces(images: Images, scheme: Scheme) -> NDArray[np.float32]:
    """Mean and standard deviation of each block, (N, H / M, W / M, 2): the same for each key, or nearly so.

    Where values are negated, of min(p, 255 - p).
    """
    found = []
    for image in images:  # one by one: as floats all of them are too many
        blocks = cut(image[None], scheme.block)
        values = np.minimum(blocks, 255 - blocks) if 'negated' in scheme.changes else blocks
        found.append(np.stack([values.mean(-1), values.std(-1)], axis=-1, dtype=np.float32))
    return np.concatenate(found)
