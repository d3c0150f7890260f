"""Block-wise encryption of images (MaungMaung and Kiya, arXiv 2105.14756; for segmentation Ito et al., 2107.09362).

An image (H, W, C) of bytes is cut into blocks of M by M pixels from its top left corner on, and every block is
encrypted alike. A value's number in its block is ``(row * M + column) * C + colour``; a secret permutation of the
M * M * C numbers comes from the key:

- SHF: value k of the result is value ``order[k]``.
- NP: the values k with ``order[k]`` below half of M * M * C become 255 - p.
- FFX: the same values become ``bytes[p]``, a secret permutation of 0 to 255 by FF1. The papers' authors encrypt a value
  as three decimal digits, which gives 0 to 999 and a new scaling; here a byte stays a byte, and can be decrypted.

At the bottom and at the right, where no whole block is left, a block is a part of one: the values that lie in it change
places in the order in which the permutation lists them, and take part in NP and FFX as they do in a whole block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keyseg_mm.errors import TransformError
from keyseg_mm.images.plan import ImagePlan
from keyseg_mm.keys.secret import Secret

Bytes = NDArray[np.uint8]
Table = NDArray[np.int64]


class ImageCipher(Secret):
    """Encrypts and decrypts images by one plan: ``decrypt(encrypt(x)) == x``, bit for bit, for every size.

    Args:
        plan: method, block and whose key.
        order: gives the secret permutation of so many numbers.
        byte_map: gives the secret permutation of 0 to 255; asked for by FFX only.
    """

    __slots__ = ('plan', '_order', '_orders', '_byte_map', '_bytes')

    def __init__(self, plan: ImagePlan, order: Callable[[int], Table], byte_map: Callable[[], Bytes]) -> None:
        self.plan, self._order, self._byte_map = plan, order, byte_map
        self._orders: dict[int, Table] = {}
        self._bytes: tuple[Bytes, Bytes] | None = None

    @property
    def public_id(self) -> str:
        return f'{self.plan}'

    def encrypt(self, image: Any) -> Bytes:
        """Encrypt an image.

        Args:
            image: uint8, shape (H, W, C) or (H, W); it stays as it is.

        Returns:
            Of the same shape and dtype.

        Raises:
            TransformError: it is no image of bytes.
        """
        return self._run(image, decrypt=False)

    def decrypt(self, image: Any) -> Bytes:
        """Undo :meth:`encrypt`; the same arguments and errors."""
        return self._run(image, decrypt=True)

    def tables(self, channels: int = 3) -> dict[str, NDArray[Any]]:
        """The secret tables, for :mod:`keyseg_mm.runtime.leaks` only."""
        order = self._order_of(channels)
        if self.plan.method == 'SHF':
            return {'block permutation': order, 'inverse block permutation': np.argsort(order)}
        found: dict[str, NDArray[Any]] = {'mask': self._mask(channels).ravel().astype(np.int8)}
        if self.plan.method == 'FFX':
            found['byte map'], found['inverse byte map'] = (table.astype(np.int64) for table in self._maps())
        return found

    def _run(self, image: Any, decrypt: bool) -> Bytes:
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim not in (2, 3):
            got = f'{image.dtype} {image.shape}' if isinstance(image, np.ndarray) else type(image).__name__
            raise TransformError(
                f'image encryption takes images of bytes, uint8 (H, W, C), and met {got}; put it behind the last '
                'transform that changes the image, right before PackSegInputs, and load images without to_float32'
            )
        source = image if image.ndim == 3 else image[..., None]
        result = np.empty(source.shape, np.uint8)
        for area, high, wide in _areas(source.shape, self.plan.block):
            shape = (*(part for n, size in zip(source[area].shape, (high, wide)) for part in (n // size, size)), -1)
            blocks, out = source[area].reshape(shape), result[area].reshape(shape)
            out[...] = self._blocks(blocks, high, wide, decrypt)
        return result.reshape(image.shape)

    def _blocks(self, blocks: Bytes, high: int, wide: int, decrypt: bool) -> Bytes:
        """Blocks of shape (down, high, across, wide, channels), encrypted or decrypted."""
        channels = blocks.shape[-1]
        if self.plan.method == 'SHF':
            order = self._part(channels, high, wide)
            rows = blocks.transpose(0, 2, 1, 3, 4)
            flat = rows.reshape(-1, len(order))
            moved = np.take(flat, np.argsort(order) if decrypt else order, axis=1)
            return moved.reshape(rows.shape).transpose(0, 2, 1, 3, 4)
        mask = self._mask(channels)[:high, None, :wide]
        changed = np.bitwise_not(blocks) if self.plan.method == 'NP' else self._maps()[decrypt][blocks]
        return np.where(mask, changed, blocks)

    def _order_of(self, channels: int) -> Table:
        if channels not in self._orders:
            self._orders[channels] = self._order(self.plan.block**2 * channels)
        return self._orders[channels]

    def _part(self, channels: int, high: int, wide: int) -> Table:
        """The permutation of a part of a block: its values in the order in which the whole block's table lists them."""
        size = self.plan.block
        order = self._order_of(channels)
        if (high, wide) == (size, size):
            return order
        inside = np.arange(len(order)).reshape(size, size, channels)[:high, :wide].ravel()
        return np.searchsorted(inside, order[np.isin(order, inside)])

    def _mask(self, channels: int) -> NDArray[np.bool_]:
        """Which places of a block NP and FFX change, shape (block, block, channels)."""
        size, order = self.plan.block, self._order_of(channels)
        return (order < len(order) // 2).reshape(size, size, channels)

    def _maps(self) -> tuple[Bytes, Bytes]:
        """FFX's byte map and its inverse."""
        if self._bytes is None:
            there = self._byte_map()
            self._bytes = there, np.argsort(there).astype(np.uint8)
        return self._bytes


def _areas(shape: tuple[int, ...], block: int) -> Iterator[tuple[tuple[slice, slice], int, int]]:
    """The whole blocks, the rest at the right, at the bottom and in the corner, each with its blocks' size."""
    cuts = []
    for side in shape[:2]:
        whole = side - side % block
        cuts.append([(slice(0, whole), block)] * bool(whole) + [(slice(whole, side), side - whole)] * (side > whole))
    for rows, high in cuts[0]:
        for columns, wide in cuts[1]:
            yield (rows, columns), high, wide
