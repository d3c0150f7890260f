"""From a secret key to permutations, signs and rotations, the same on every platform and release.

A subkey comes from HKDF-SHA256 (RFC 5869), one per salt and purpose; it drives a ChaCha20 keystream (RFC 8439), and all
randomness is read from that stream. No generator of torch or numpy is used, since neither promises its numbers across
releases, and floating-point work uses only ``+ - * / sqrt``, which IEEE 754 rounds alike everywhere (no libm, no BLAS).
``tests/vectors/derive.json`` fixes the results.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.hashes import SHA256, Hash
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from keyseg_mm.keys.secret import unseen

_WORD = 8  # bytes in a word of the stream
_LN2 = 0.6931471805599453


@unseen
def hkdf(key: bytes, label: str, fields: list[Any], salt: bytes = b'', length: int = 32) -> bytes:
    """HKDF-SHA256 (RFC 5869) with an unambiguous ``info``: the versioned label and the fields as canonical JSON.

    Args:
        key: input keying material.
        label: what the output is for, with its version, as ``'keyseg_mm/subkey/v1'``.
        fields: public JSON values that the output depends on.
        salt: public salt; empty means none.
        length: bytes wanted.
    """
    info = json.dumps([label, *fields], sort_keys=True, separators=(',', ':'), ensure_ascii=True)
    return HKDF(SHA256(), length, salt or None, info.encode('ascii')).derive(key)


def sha256(*parts: Any) -> bytes:
    """SHA-256 (FIPS 180-4) of bytes, one after another."""
    state = Hash(SHA256())
    for part in parts:
        state.update(part)
    return state.finalize()


class KeyStream:
    """ChaCha20 keystream (RFC 8439) of a 32-byte subkey, with a zero nonce: a subkey has one stream and one use."""

    __slots__ = ('_encrypt', '_ahead')

    @unseen
    def __init__(self, subkey: bytes) -> None:
        self._encrypt = Cipher(algorithms.ChaCha20(subkey, bytes(16)), mode=None).encryptor()
        self._ahead = np.empty(0, dtype=np.uint64)  # words given back

    def words(self, count: int) -> NDArray[np.uint64]:
        """The next ``count`` little-endian 64-bit words of the stream."""
        ahead, self._ahead = self._ahead[:count], self._ahead[count:]
        fresh = self._encrypt.update(bytes(_WORD * (count - len(ahead))))
        words = np.frombuffer(fresh, dtype='<u8').astype(np.uint64, copy=False)
        return np.concatenate([ahead, words]) if len(ahead) else words

    def give_back(self, words: NDArray[np.uint64]) -> None:
        """Take back the last words read, unused; they are the next to be read again."""
        self._ahead = np.concatenate([words, self._ahead])

    def below(self, bounds: NDArray[np.uint64]) -> NDArray[np.int64]:
        """One unbiased integer in ``[0, bound)`` for each bound, by rejection.

        A word is rejected where it falls into the last, incomplete run of ``bound`` values below 2**64; the next word
        of the stream then takes its place. With bounds below 2**32 that happens less than once in 2**32 words.
        """
        words = self.words(len(bounds))
        top = np.uint64(2**64 - 1)
        if len(words) and words.max() > top - bounds.max():  # below that no bound rejects, and none is looked at
            limits = top - (top % bounds + np.uint64(1)) % bounds  # the largest word that is kept
            words = self._redraw(words, limits)
        return (words % bounds).astype(np.int64)

    def _redraw(self, words: NDArray[np.uint64], limits: NDArray[np.uint64]) -> NDArray[np.uint64]:
        pending, kept = list(words), []
        for limit in limits:
            word = pending.pop(0) if pending else self.words(1)[0]
            while word > limit:
                word = pending.pop(0) if pending else self.words(1)[0]
            kept.append(word)
        return np.array(kept, dtype=np.uint64)

    def uniform(self, count: int) -> NDArray[np.float64]:
        """``count`` multiples of 2**-53 in ``[0, 1)``, exact in float64."""
        return _unit(self.words(count))


def permutation(stream: KeyStream, n: int) -> NDArray[np.int64]:
    """A uniform permutation of ``0..n-1`` by the Fisher-Yates shuffle (Durstenfeld 1964), from the top down."""
    draws = stream.below(np.arange(n, 1, -1, dtype=np.uint64)).tolist()
    table = list(range(n))
    for i, j in zip(range(n - 1, 0, -1), draws):
        table[i], table[j] = table[j], table[i]
    return np.array(table, dtype=np.int64)


def signs(stream: KeyStream, n: int) -> NDArray[np.int8]:
    """``n`` independent uniform signs, +1 or -1, from the lowest bits of the stream's words upwards."""
    words = stream.words((n + 63) // 64)
    bits = (words[:, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)
    return (1 - 2 * bits.reshape(-1)[:n].astype(np.int8)).astype(np.int8)


def rotations(stream: KeyStream, count: int, size: int) -> NDArray[np.float64]:
    """``count`` independent orthogonal matrices, Haar-distributed on O(size), shape (count, size, size).

    Gram-Schmidt on Gaussian columns with a positive diagonal of R is Haar (Mezzadri 2007, arXiv math-ph/0609050). It
    runs twice, which makes the columns orthogonal to rounding ("twice is enough", Giraud et al. 2005).
    """
    gauss = _gaussian(stream, count * size * size).reshape(size, size, count)
    rows = gauss.transpose(1, 0, 2).copy()  # rows[i, j] holds element i of column j, of all matrices at once
    for _ in range(2):
        for j in range(size):
            done = rows[:, j : j + 1]
            done /= np.sqrt(_dot(done, done))
            later = rows[:, j + 1 :]
            if j + 1 < size:
                later -= _dot(later, done) * done
    return rows.transpose(2, 0, 1).copy()


def _dot(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Inner products over the first axis, in a fixed order: numpy may reorder its sums with the vector width."""
    products = a * b
    total: NDArray[np.float64] = products[0]
    for product in products[1:]:
        total += product
    return total


def _unit(words: NDArray[np.uint64]) -> NDArray[np.float64]:
    """The upper 53 bits of each word as a fraction in ``[0, 1)``."""
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _gaussian(stream: KeyStream, n: int) -> NDArray[np.float64]:
    """``n`` standard normal numbers by the polar method (Marsaglia and Bray 1964).

    Each pair of words is a point of a square, and gives two numbers if it lies in the unit disc, as 79 % do. Points are
    read a few too many at once, for speed, and those behind the last one needed are given back.
    """
    pairs = (n + 1) // 2
    words = np.empty((0, 2), dtype=np.uint64)
    inside = np.empty(0, dtype=np.int64)
    points, s = np.empty((0, 2)), np.empty(0)
    while len(inside) < pairs:
        words = np.concatenate([words, stream.words(2 * (pairs * 4 // 3 + 64)).reshape(-1, 2)])
        points = 2.0 * _unit(words) - 1.0
        s = points[:, 0] * points[:, 0] + points[:, 1] * points[:, 1]
        inside = np.flatnonzero((s < 1.0) & (s > 0.0))
    inside = inside[:pairs]
    if pairs:
        stream.give_back(words[inside[-1] + 1 :].reshape(-1))
    s = s[inside]
    return (points[inside] * np.sqrt(-2.0 * _log(s) / s)[:, None]).reshape(-1)[:n]


def _log(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Natural logarithm by exact arithmetic steps only; the C library's may differ in the last bit between platforms.

    ``ln(m 2^e) = e ln 2 + 2 atanh((m - 1) / (m + 1))`` with m in [sqrt(1/2), sqrt(2)), by 13 terms of the series.
    """
    mantissa, exponent = np.frexp(x)
    low = mantissa < 0.7071067811865476
    mantissa = np.where(low, 2.0 * mantissa, mantissa)
    exponent = exponent - low
    z = (mantissa - 1.0) / (mantissa + 1.0)
    square = z * z
    total = np.full_like(z, 1.0 / 25.0)
    for k in range(23, 0, -2):
        total *= square
        total += 1.0 / k
    return exponent * _LN2 + 2.0 * z * total
