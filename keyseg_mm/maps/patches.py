"""Block-wise image encryption that a vision transformer's patch embedding can absorb.

An image is cut into blocks of the embedding's patch size. Within each block the 3 p p values are permuted and some are
taken from 255, alike in every block, after Nagamori, Iijima and Kiya, "An Access Control Method with Secret Key for
Semantic Segmentation Models", arXiv 2208.13135, and Kiya, Iijima and Nagamori, "Block-Wise Encryption for Reliable
Vision Transformer Models", arXiv 2308.07612. 8-bit values stay 8-bit values, so nothing is lost.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from keyseg_mm.errors import TransformError
from keyseg_mm.keys import derive
from keyseg_mm.keys.derive import KeyStream
from keyseg_mm.keys.secret import Secret
from keyseg_mm.maps.keyspace import bits_of_permutation

CHANNELS = 3  # red, green, blue
TOP = 255  # largest pixel value
PERMUTE = ('all', 'channel', 'none')
LARGEST_PATCH = 256


def check_steps(patch: Any, permute: Any, negate: Any) -> None:
    """Refuse parameters that make no cipher.

    Raises:
        TransformError: a bad value, or nothing left to do.
    """
    if not isinstance(patch, int) or isinstance(patch, bool) or not 1 < patch <= LARGEST_PATCH:
        raise TransformError(f'patch is a whole number of pixels from 2 to {LARGEST_PATCH}, not {patch!r}')
    if permute not in PERMUTE:
        raise TransformError(f'permute is one of {", ".join(PERMUTE)}, not {permute!r}')
    if not isinstance(negate, bool):
        raise TransformError(f'negate is True or False, not {negate!r}')
    if permute == 'none' and not negate:
        raise TransformError('permute=none without negate leaves the image as it is; take at least one of them')


def key_space(patch: int, permute: str, negate: bool) -> float:
    """log2 of the number of ciphers: of the permutations and signs, where the key itself has 256 bits."""
    pixels = patch * patch
    runs = {'all': [CHANNELS * pixels], 'channel': [pixels] * CHANNELS, 'none': []}[permute]
    return sum(map(bits_of_permutation, runs)) + (CHANNELS * pixels if negate else 0)


class PatchCipher(Secret):
    """``e[i] = v[table[i]]``, or 255 minus that where ``signs[i]`` is -1, over the values of each block.

    Values of a block are counted channel by channel (red, green, blue), in each row by row.
    ``inverse()(cipher(image)) == image``, bit for bit.

    Args:
        patch: side of a block, in pixels.
        table: a permutation, shape (3 * patch * patch,).
        signs: +1 or -1, of the same shape.
    """

    __slots__ = ('patch', '_table', '_signs')

    def __init__(self, patch: int, table: NDArray[np.int64], signs: NDArray[np.int8]) -> None:
        self.patch, self._table, self._signs = patch, table, signs

    @classmethod
    def derive(cls, stream: KeyStream, patch: int, permute: str, negate: bool) -> PatchCipher:
        """The cipher that a keystream gives: its permutations, red's before green's before blue's, and then its signs.

        Args:
            stream: of the subkey.
            patch: side of a block, in pixels.
            permute: ``'all'``, values change places across the channels too; ``'channel'``, within each channel, with a
                permutation for each; ``'none'``.
            negate: whether values are taken from 255 where the stream says so.
        """
        check_steps(patch, permute, negate)
        pixels = patch * patch
        size = CHANNELS * pixels
        if permute == 'all':
            table = derive.permutation(stream, size)
        elif permute == 'channel':
            table = np.concatenate([derive.permutation(stream, pixels) + c * pixels for c in range(CHANNELS)])
        else:
            table = np.arange(size)
        return cls(patch, table, derive.signs(stream, size) if negate else np.ones(size, dtype=np.int8))

    @property
    def public_id(self) -> str:
        return f'of blocks of {self.patch} x {self.patch} pixels'

    def __call__(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Encrypt an image.

        Args:
            image: (H, W, 3), uint8, red first; H and W multiples of the patch.

        Returns:
            A new image of the same shape.

        Raises:
            TransformError: another shape or dtype.
        """
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != CHANNELS:
            raise TransformError(
                f'an image of shape {image.shape} and type {image.dtype} is no colour image of 8 bits, as it comes '
                'from a file; encrypt it before it is normalised'
            )
        h, w, p = image.shape[0], image.shape[1], self.patch
        if not h or not w or h % p or w % p:
            raise TransformError(f'an image of {w} x {h} pixels is not made of whole blocks of {p} x {p}')
        blocks = image.reshape(h // p, p, w // p, p, CHANNELS).transpose(0, 2, 4, 1, 3).reshape(-1, len(self._table))
        mixed = blocks[:, self._table] ^ np.where(self._signs < 0, TOP, 0).astype(np.uint8)  # 255 - v is v ^ 255
        back = mixed.reshape(h // p, w // p, CHANNELS, p, p).transpose(0, 3, 1, 4, 2)
        return np.ascontiguousarray(back.reshape(h, w, CHANNELS))

    def inverse(self) -> PatchCipher:
        """The cipher that undoes this one."""
        back = np.argsort(self._table)
        return PatchCipher(self.patch, back, self._signs[back])

    def compose(self, first: PatchCipher) -> PatchCipher:
        """The cipher ``image -> self(first(image))``."""
        if first.patch != self.patch:
            raise TransformError(f'cannot compose ciphers of blocks of {first.patch} and {self.patch} pixels')
        return PatchCipher(self.patch, first._table[self._table], self._signs * first._signs[self._table])

    def terms(
        self, mean: NDArray[np.float64], std: NDArray[np.float64]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
        """What a linear layer needs that reads encrypted values in the place of plain ones, both normalised.

        With plain values ``x[j] = (v[j] - mean[c]) / std[c]`` of channel c, and those of the encrypted block likewise,
        ``sum_j W[j] x[j] = sum_i W[table[i]] (gain[i] x'[i] + shift[i])``.

        Args:
            mean, std: of the normalisation, shape (3,), red first.

        Returns:
            ``table``, ``gain`` and ``shift``, each of shape (3 * patch * patch,). Where all std are equal, ``gain`` is
            +1 or -1 exactly; where nothing is negated and no value changes channels, or all means are 127.5, ``shift``
            is 0 exactly.
        """
        pixels = self.patch * self.patch
        means, stds = np.repeat(mean, pixels), np.repeat(std, pixels)
        signs = self._signs.astype(np.float64)
        ratio = np.where(stds == stds[self._table], 1.0, stds / stds[self._table])
        shift = (TOP * (self._signs < 0) + signs * means - means[self._table]) / stds[self._table]
        return self._table, signs * ratio, shift

    def tables(self) -> dict[str, NDArray[Any]]:
        """The secret tables, for :mod:`keyseg_mm.runtime.leaks` only."""
        return {'permutation': self._table, 'inverse permutation': np.argsort(self._table), 'signs': self._signs}
