"""How near restored images are to the plain ones: PSNR and SSIM.

Written out over scipy, which this package has anyway, in the place of scikit-image and its six dependencies; the tests
compare with figures of scikit-image 0.26.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter  # type: ignore[import-untyped]

from keyseg_mm.audit.images.scheme import Images
from keyseg_mm.audit.report.page import decibels
from keyseg_mm.errors import KeysegError

TOP = 255.0
# Wang, Bovik, Sheikh and Simoncelli, "Image Quality Assessment", IEEE TIP 13(4), 2004: an 11 x 11 window of sigma 1.5
_SIGMA, _REACH = 1.5, 5
_C1, _C2 = (0.01 * TOP) ** 2, (0.03 * TOP) ** 2


@dataclass(frozen=True)
class ImageScore:
    """How near restored images are to the plain ones.

    Attributes:
        psnr: of the mean squared error over all values of all images, in dB; infinite where nothing differs.
        ssim: mean of the images'; 1 for equal ones.
        exact: share of the images that agree bit for bit.
        found: share of random values that a guess at the cipher decrypts; None without a guess.
    """

    psnr: float
    ssim: float
    exact: float
    found: float | None = None

    def __str__(self) -> str:
        return f'SSIM {self.ssim:.2f}, {decibels(self.psnr)}'


def similarity(restored: Images, plain: Images, found: float | None = None) -> ImageScore:
    """Score images (N, H, W, 3) of bytes.

    Raises:
        KeysegError: they are not as many, as large, or not of bytes.
    """
    if restored.shape != plain.shape or restored.dtype != np.uint8 or plain.dtype != np.uint8:
        raise KeysegError(
            f'restored images {restored.dtype} {restored.shape} cannot be compared with plain ones {plain.dtype} '
            f'{plain.shape}'
        )
    pairs = list(zip(restored, plain))
    error = float(np.mean([np.mean((a.astype(np.float64) - b) ** 2) for a, b in pairs]))
    return ImageScore(
        math.inf if error == 0 else 10 * math.log10(TOP**2 / error),
        float(np.mean([ssim(a, b) for a, b in pairs])),
        float(np.mean([np.array_equal(a, b) for a, b in pairs])),
        found,
    )


def ssim(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """Structural similarity of two images (H, W, 3): the mean over pixels and colours, the window's margin left out.

    Images smaller than the window count whole.
    """
    x, y = a.astype(np.float64), b.astype(np.float64)
    mean_x, mean_y = _local(x), _local(y)
    var_x, var_y = _local(x * x) - mean_x**2, _local(y * y) - mean_y**2
    both = _local(x * y) - mean_x * mean_y
    found = (2 * mean_x * mean_y + _C1) * (2 * both + _C2) / ((mean_x**2 + mean_y**2 + _C1) * (var_x + var_y + _C2))
    if min(found.shape[:2]) > 2 * _REACH:
        found = found[_REACH:-_REACH, _REACH:-_REACH]
    return float(found.mean())


def _local(x: NDArray[np.float64]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = gaussian_filter(x, (_SIGMA, _SIGMA, 0), radius=(_REACH, _REACH, 0))
    return found
