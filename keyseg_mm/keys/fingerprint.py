"""The secret pattern of a licensee's copy: what is added to its weights, and what a found file is searched for.

Values are a byte of the keyed stream each: the sum of its two hexadecimal digits, from 0 to 30, which leans to the
middle as a normal distribution does (Cox et al., IEEE Transactions on Image Processing 6(12), 1997). Each value less
:data:`MEAN` is a weighted sum of 8 independent signs, so that sums of values have tails no heavier than a normal
distribution's with the same variance (Hoeffding 1963), whatever they are weighted with.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from keyseg_mm.keys.derive import KeyStream
from keyseg_mm.keys.key import SecretKey, licensee_name
from keyseg_mm.keys.secret import Secret, unseen

MEAN = 15
STD = math.sqrt(42.5)
STEP = 8  # values in a word of the stream: whoever reads less than all of a pattern at once reads a multiple
_DIGITS = np.uint64(0x0F0F0F0F0F0F0F0F)


class Pattern(Secret):
    """One licensee's pattern for one tensor of one model, read from its first value on.

    Only the holder of the master key can make it; the licensee's own key tells nothing of it.

    Args:
        master: the master key.
        licensee: their name.
        model: public digest of the model, so that no two models have the same patterns.
        tensor: name of the tensor.
    """

    __slots__ = ('_stream', '_tensor')

    @unseen
    def __init__(self, master: SecretKey, licensee: str, model: bytes, tensor: str) -> None:
        self._stream = KeyStream(master.subkey('keyseg_mm/fingerprint/v1', [licensee_name(licensee), tensor], model))
        self._tensor = tensor

    @property
    def public_id(self) -> str:
        return f'of {self._tensor}'

    @unseen
    def read(self, count: int) -> NDArray[np.uint8]:
        """The next values; ``count`` is a multiple of :data:`STEP` wherever more are read behind them."""
        words = self._stream.words(-(-count // STEP))
        sums = (words >> np.uint64(4)) & _DIGITS
        sums += words & _DIGITS
        found: NDArray[np.uint8] = sums.astype('<u8', copy=False).view(np.uint8)[:count]
        return found
