"""How many maps there are for a key to choose from, in bits. The key itself has :data:`KEY_BITS`."""

from __future__ import annotations

import math

from keyseg_mm.maps.pixels import COLOURS

KEY_BITS = 256
_BYTES = 256
_MANY = 32  # of more values no share worth counting is left out


def bits_of_permutation(n: int) -> float:
    """log2 of n!."""
    return math.lgamma(n + 1) / math.log(2)


def bits_of_orders(n: int, forms: int = 1) -> float:
    """log2 of the number of permutations of n values, each in so many forms, that are no less than half a change.

    Those that change fewer than half of the values, rounded down, or none, are not used; see
    :meth:`keyseg_mm.maps.base.Map.derive`.
    """
    bits = bits_of_permutation(n) + n * math.log2(forms)
    if n > _MANY or n < 2:
        return bits

    def all_changed(m: int) -> int:  # by inclusion and exclusion
        return sum((-1) ** j * math.comb(m, j) * forms ** (m - j) * math.factorial(m - j) for j in range(m + 1))

    return math.log2(sum(math.comb(n, m) * all_changed(m) for m in range(max(1, n // 2), n + 1)))


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
