"""The order of a block's values without a single photo: by comparison with noise that varies as photos do."""

from __future__ import annotations

import numpy as np

from keyseg_mm.audit.attack import Progress
from keyseg_mm.audit.restoring.attack import Restored, Restoring, register
from keyseg_mm.audit.restoring.attacks._order import MOST_VALUES
from keyseg_mm.audit.restoring.attacks._statistics import as_bytes
from keyseg_mm.audit.restoring.attacks.neighbour_order import restored
from keyseg_mm.audit.restoring.case import ImageCase
from keyseg_mm.audit.restoring.scheme import COLOURS, Images, Scheme

_PICTURES = 32
_FALL = 1.2  # amplitude ~ 1 / frequency^1.2: Tolhurst, Tadmor and Chao 1992 found 0.8 to 1.5 in photos
_TINT = 0.25  # how much colours differ, against what they have in common
_LEVEL, _CONTRAST = 110, 55


@register
class NeighbourOrderNoise(Restoring):
    """The comparison of :mod:`.neighbour_order` with coloured noise in the place of photos.

    The spectrum of photos falls about as 1 / frequency, and their colours have most in common: that is enough. Noise
    has no favourite colour, so images may come out with colours exchanged.
    """

    name, title = 'neighbour-order-noise', 'values ordered by neighbourhood, after noise'
    source = 'worked out for this audit, with the spectrum of natural images (Field 1987)'
    cost = 'as with photos'

    @classmethod
    def fits(cls, scheme: Scheme) -> bool:
        """Where values change places, in blocks that are not too large."""
        return scheme.moves != 'none' and scheme.values <= MOST_VALUES

    def run(self, case: ImageCase, progress: Progress) -> Restored:
        """Compare with noise."""
        high, wide = case.encrypted.shape[1:3]
        return restored(case, noise(_PICTURES, high, wide, case.rng), progress, 'No photo was needed.')


def noise(count: int, high: int, wide: int, rng: np.random.Generator) -> Images:
    """Pictures (N, H, W, 3) of coloured noise with the spectrum of photos."""
    frequency = np.hypot(np.fft.fftfreq(high)[:, None], np.fft.fftfreq(wide)[None])
    frequency[0, 0] = 1 / max(high, wide)

    def draw() -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        spectrum = np.fft.fft2(rng.normal(size=(high, wide))) / frequency**_FALL
        return np.asarray(np.fft.ifft2(spectrum).real)

    pictures = []
    for _ in range(count):
        common = draw()
        picture = np.stack([common + _TINT * draw() for _ in range(COLOURS)], axis=-1)
        pictures.append(_LEVEL + _CONTRAST * (picture - picture.mean()) / picture.std())
    return as_bytes(np.stack(pictures))
