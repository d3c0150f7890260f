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
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

_WORD = 8  # bytes in a word of the stream
_LN2 = 0.6931471805599453


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


class KeyStream:
    """ChaCha20 keystream (RFC 8439) of a 32-byte subkey, with a zero nonce: a subkey has one stream and one use."""

    __slots__ = ('_encrypt',)

    def __init__(self, subkey: bytes) -> None:
        self._encrypt = Cipher(algorithms.ChaCha20(subkey, bytes(16)), mode=None).encryptor()

    def words(self, count: int) -> NDArray[np.uint64]:
        """The next ``count`` little-endian 64-bit words of the stream."""
        return np.frombuffer(self._encrypt.update(bytes(_WORD * count)), dtype='<u8').astype(np.uint64)

    def below(self, bounds: NDArray[np.uint64]) -> NDArray[np.int64]:
        """One unbiased integer in ``[0, bound)`` for each bound, by rejection.

        A word is rejected where it falls into the last, incomplete run of ``bound`` values below 2**64; the next word
        of the stream then takes its place. With bounds below 2**32 that happens less than once in 2**32 words.
        """
        top = np.uint64(2**64 - 1)
        limits = top - (top % bounds + np.uint64(1)) % bounds  # the largest word that is kept
        words = self.words(len(bounds))
        if not (words <= limits).all():
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
        return (self.words(count) >> np.uint64(11)).astype(np.float64) * 2.0**-53


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
    columns = [[gauss[j, i] for i in range(size)] for j in range(size)]
    for _ in range(2):
        for j, column in enumerate(columns):
            for done in columns[:j]:
                along = _dot(column, done)
                column[:] = [c - along * d for c, d in zip(column, done)]
            norm = np.sqrt(_dot(column, column))
            column[:] = [c / norm for c in column]
    return np.array(columns).transpose(2, 1, 0).copy()


def _dot(a: list[NDArray[np.float64]], b: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Inner products summed in a fixed order: numpy's own sums may reorder with the processor's vector width."""
    total = a[0] * b[0]
    for x, y in zip(a[1:], b[1:]):
        total = total + x * y
    return total


def _gaussian(stream: KeyStream, n: int) -> NDArray[np.float64]:
    """``n`` standard normal numbers by the polar method (Marsaglia and Bray 1964)."""
    out = np.empty(0)
    while len(out) < n:
        pairs = (n - len(out) + 1) // 2
        draws = 2.0 * stream.uniform(2 * pairs) - 1.0
        u, v = draws[0::2], draws[1::2]
        s = u * u + v * v
        keep = (s < 1.0) & (s > 0.0)
        u, v, s = u[keep], v[keep], s[keep]
        scale = np.sqrt(-2.0 * _log(s) / s)
        out = np.concatenate([out, np.stack([u * scale, v * scale], axis=1).reshape(-1)])
    return out[:n]


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
        total = total * square + 1.0 / k
    return exponent * _LN2 + 2.0 * z * total
