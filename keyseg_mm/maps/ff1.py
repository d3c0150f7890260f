"""FF1 of NIST SP 800-38G (2016), the standard form of the Feistel-based format-preserving encryption FFX, on bytes.

FFX is the proposal of Bellare, Rogaway and Spies (2010). Of the packages that offer it, those in use refuse domains
below a million (FF3-1) or the Pythons that this package serves, or have had no release for years, so the mode is
written out here over the AES of ``cryptography``, for all bytes at once; the tests have the whole mode, and NIST's
sample vectors for that.
"""

from __future__ import annotations

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from keyseg_mm.keys.secret import unseen

_ROUNDS = 10
# [P] of algorithm 7 for radix 2, eight digits and no tweak
_HEAD = bytes([1, 2, 1, 0, 0, 2, _ROUNDS, 4, 0, 0, 0, 8, 0, 0, 0, 0])


@unseen
def byte_map(key: bytes) -> NDArray[np.uint8]:
    """The permutation of 0 to 255 that FF1 makes of a byte's eight bits (radix 2, no tweak), shape (256,).

    Algorithm 7 of the standard; its names in brackets. A byte's halves [A] and [B] are numbers below 16, so that [Q] is
    a single block: zeros, the round, and [B]. Of [S], the eight first bytes of the CBC-MAC, the last one counts.
    """
    aes = Cipher(algorithms.AES(key), modes.ECB()).encryptor()  # noqa: S305 - a building block here, not a mode
    head = np.frombuffer(aes.update(_HEAD), np.uint8)
    a, b = np.divmod(np.arange(256, dtype=np.uint8), 16)
    for i in range(_ROUNDS):
        blocks = np.zeros((256, 16), np.uint8)
        blocks[:, 14], blocks[:, 15] = i, b
        mac = np.frombuffer(aes.update((blocks ^ head).tobytes()), np.uint8).reshape(256, 16)
        a, b = b, (a + mac[:, 7]) % 16
    return a * 16 + b
