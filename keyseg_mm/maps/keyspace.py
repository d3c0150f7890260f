"""How many maps there are for a key to choose from, in bits. The key itself has :data:`KEY_BITS`."""

from __future__ import annotations

import math

from keyseg_mm.maps.pixels import COLOURS

KEY_BITS = 256
_BYTES = 256


def bits_of_permutation(n: int) -> float:
    """log2 of n!."""
    return math.lgamma(n + 1) / math.log(2)


def bits_of_half(n: int) -> float:
    """log2 of the number of ways to choose n // 2 of n."""
    half = n // 2
    return bits_of_permutation(n) - bits_of_permutation(half) - bits_of_permutation(n - half)


def bits_of_images(method: str, block: int) -> float:
    """log2 of the number of ciphers of SHF, NP or FFX for blocks of ``block`` by ``block`` pixels of three colours."""
    n = COLOURS * block * block
    if method == 'SHF':
        return bits_of_permutation(n)
    return bits_of_half(n) + (bits_of_permutation(_BYTES) if method == 'FFX' else 0.0)


def bits_of_patches(patch: int, permute: str, negate: bool) -> float:
    """log2 of the number of ciphers of PATCH; see :meth:`keyseg_mm.maps.pixels.BlockTables.derive_patch`."""
    pixels = patch * patch
    runs = {'all': [COLOURS * pixels], 'channel': [pixels] * COLOURS, 'none': []}[permute]
    return sum(map(bits_of_permutation, runs)) + (COLOURS * pixels if negate else 0)
