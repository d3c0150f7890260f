"""How many tables there are for a key to choose from, in bits."""

from __future__ import annotations

import math

KEY_BITS = 256  # of a key itself


def bits_of_permutation(n: int) -> float:
    """log2 of n!."""
    return math.lgamma(n + 1) / math.log(2)


def bits_of_half(n: int) -> float:
    """log2 of the number of ways to choose n // 2 of n."""
    half = n // 2
    return bits_of_permutation(n) - bits_of_permutation(half) - bits_of_permutation(n - half)
