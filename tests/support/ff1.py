"""FF1 of NIST SP 800-38G (2016) for digits of any radix: what the package's map of bytes is checked against."""

from __future__ import annotations

from collections.abc import Sequence

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

_ROUNDS = 10
_BLOCK = 16  # bytes of an AES block


class FF1:
    """FF1 with AES, encryption only.

    Args:
        key: of 16, 24 or 32 bytes.
        radix: number of different digits, 2 to 65536.
        tweak: public bytes.
    """

    def __init__(self, key: bytes, radix: int, tweak: bytes = b'') -> None:
        self._aes = Cipher(algorithms.AES(key), modes.ECB())  # noqa: S305 - a building block here, not a mode
        self._radix, self._tweak = radix, tweak

    def encrypt(self, digits: Sequence[int]) -> list[int]:
        """Algorithm 7 of the standard, on at least two digits; its names in brackets.

        Args:
            digits: whole numbers below the radix, the most significant first.
        """
        n = len(digits)
        left = n // 2  # [u]
        right = n - left  # [v]
        size = ((self._radix**right - 1).bit_length() + 7) // 8  # [b]
        wanted = 4 * -(-size // 4) + 4  # [d]
        head = bytes([1, 2, 1]) + self._radix.to_bytes(3, 'big') + bytes([_ROUNDS, left % 256])
        head += n.to_bytes(4, 'big') + len(self._tweak).to_bytes(4, 'big')  # [P]
        a, b = self._number(digits[:left]), self._number(digits[left:])
        for i in range(_ROUNDS):
            padding = bytes(-(len(self._tweak) + size + 1) % _BLOCK)
            tail = self._tweak + padding + bytes([i]) + b.to_bytes(size, 'big')  # [Q]
            y = int.from_bytes(self._expand(self._prf(head + tail), wanted), 'big')
            a, b = b, (a + y) % self._radix ** (right if i % 2 else left)
        return self._digits(a, left) + self._digits(b, right)

    def _prf(self, data: bytes) -> bytes:
        """CBC-MAC (algorithm 6)."""
        state = bytes(_BLOCK)
        encryptor = self._aes.encryptor()
        for at in range(0, len(data), _BLOCK):
            state = encryptor.update(bytes(x ^ y for x, y in zip(state, data[at : at + _BLOCK])))
        return state

    def _expand(self, block: bytes, size: int) -> bytes:
        encryptor, start = self._aes.encryptor(), int.from_bytes(block, 'big')
        more = [encryptor.update((start ^ j).to_bytes(_BLOCK, 'big')) for j in range(1, -(-size // _BLOCK))]
        return b''.join([block, *more])[:size]

    def _number(self, digits: Sequence[int]) -> int:
        number = 0
        for digit in digits:
            number = number * self._radix + digit
        return number

    def _digits(self, number: int, count: int) -> list[int]:
        found = []
        for _ in range(count):
            number, digit = divmod(number, self._radix)
            found.append(digit)
        return found[::-1]
