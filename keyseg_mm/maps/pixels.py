"""Block-wise encryption of images: one secret map of a block's bytes, the same in every block.

An image (H, W, C) of bytes is cut into blocks of M by M pixels from its top left corner on. A value's number in its
block is ``(row * M + column) * C + colour``, and all methods do ``e[k] = f(v[order[k]])``, where f changes a byte at
some secret places k and leaves it alone at the others. What is secret of that differs by the method:

- SHF: ``order``.
- NP: the places, half of them; f is 255 - p.
- FFX: the places, half of them; f is a secret permutation of 0 to 255 by FF1. The papers' authors encrypt a value as
  three decimal digits, which gives 0 to 999 and a new scaling; here a byte stays a byte, and can be decrypted.
- PATCH: ``order``, across the colours or within each, and the places, each by a coin; f is 255 - p. A vision
  transformer's patch embedding can absorb it, for blocks of its patch size.

SHF, NP and FFX are of MaungMaung and Kiya, arXiv 2105.14756, for segmentation Ito et al., arXiv 2107.09362; PATCH is of
Nagamori, Iijima and Kiya, arXiv 2208.13135, and Kiya, Iijima and Nagamori, arXiv 2308.07612.

At the bottom and at the right, where no whole block is left, a block is a part of one: the values that lie in it change
places in the order in which ``order`` lists them, and are changed as they are in a whole block. PATCH takes whole
blocks only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keyseg_mm.errors import TransformError
from keyseg_mm.keys import derive
from keyseg_mm.keys.derive import KeyStream
from keyseg_mm.keys.secret import Secret, unseen

Bytes = NDArray[np.uint8]
Table = NDArray[np.int64]

COLOURS, TOP = 3, 255
PATCH = 'PATCH'
METHODS = ('SHF', 'NP', 'FFX', PATCH)
PERMUTE = ('all', 'channel', 'none')
LARGEST_BLOCK, LARGEST_PATCH = 64, 256


def check_method(method: object, block: object) -> None:
    """Refuse a method or block size that does not exist.

    Raises:
        TransformError: with what exists.
    """
    if method not in METHODS:
        raise TransformError(f'no image encryption {method!r}; there are {", ".join(METHODS)}')
    low, high = (2, LARGEST_PATCH) if method == PATCH else (1, LARGEST_BLOCK)
    if not isinstance(block, int) or isinstance(block, bool) or not low <= block <= high:
        raise TransformError(f'{method}: block is a whole number of pixels from {low} to {high}, not {block!r}')


def check_steps(permute: object, negate: object) -> None:
    """Refuse steps of PATCH that make no cipher.

    Raises:
        TransformError: a bad value, or nothing left to do.
    """
    if permute not in PERMUTE:
        raise TransformError(f'permute is one of {", ".join(PERMUTE)}, not {permute!r}')
    if not isinstance(negate, bool):
        raise TransformError(f'negate is True or False, not {negate!r}')
    if permute == 'none' and not negate:
        raise TransformError('permute=none without negate leaves the image as it is; take at least one of them')


class BlockTables(Secret):
    """The secret map of one block's values.

    Args:
        order: ``e[k] = f(v[order[k]])``; None for no permutation.
        changed: at which k f is applied, boolean; None for nowhere.
        values: f, a permutation of 0 to 255; None for 255 - p.
    """

    __slots__ = ('order', 'changed', 'values')

    def __init__(self, order: Table | None = None, changed: Any = None, values: Bytes | None = None) -> None:
        self.order = None if order is None else np.asarray(order, dtype=np.int64)
        self.changed = None if changed is None else np.asarray(changed, dtype=bool)
        self.values = (TOP - np.arange(256) if values is None else np.asarray(values)).astype(np.uint8)

    @property
    def public_id(self) -> str:
        return 'of one block'

    @classmethod
    def derive(cls, stream: KeyStream, size: int, method: str, values: Callable[[], Bytes]) -> BlockTables:
        """The tables that a keystream gives for a block of ``size`` values, by SHF, NP or FFX.

        Args:
            stream: of the subkey.
            size: M * M * C.
            method: ``SHF``, ``NP`` or ``FFX``.
            values: gives FFX's permutation of the bytes.
        """
        order = derive.permutation(stream, size)
        if method == 'SHF':
            return cls(order)
        return cls(None, order < size // 2, values() if method == 'FFX' else None)

    @classmethod
    def derive_patch(cls, stream: KeyStream, patch: int, permute: str, negate: bool) -> BlockTables:
        """The tables that a keystream gives by PATCH: its permutations, the first colour's first, and then its coins.

        Args:
            stream: of the subkey.
            patch: side of a block, in pixels.
            permute: ``'all'``, values change places across the colours too; ``'channel'``, within each colour, with a
                permutation for each; ``'none'``.
            negate: whether values are taken from 255 where a coin says so.
        """
        pixels = patch * patch
        order = None
        if permute == 'all':
            order = derive.permutation(stream, COLOURS * pixels)
        elif permute == 'channel':
            colours = [derive.permutation(stream, pixels) * COLOURS + colour for colour in range(COLOURS)]
            order = np.stack(colours, axis=1).ravel()
        return cls(order, derive.signs(stream, COLOURS * pixels) < 0 if negate else None)

    def inverse(self) -> BlockTables:
        """The tables that undo these."""
        order = None if self.order is None else np.argsort(self.order)
        changed = self.changed if self.changed is None or order is None else self.changed[order]
        return BlockTables(order, changed, np.argsort(self.values).astype(np.uint8))

    def compose(self, first: BlockTables) -> BlockTables:
        """The tables that do ``first`` and then these, where both change values by 255 - p."""
        places = slice(None) if self.order is None else self.order
        order = self.order if first.order is None else first.order[places]
        if first.changed is None or self.changed is None:
            return BlockTables(order, self.changed if first.changed is None else first.changed[places])
        return BlockTables(order, self.changed ^ first.changed[places])


class BlockCipher(Secret):
    """Encrypts and decrypts images: ``decrypt(encrypt(x)) == x``, bit for bit.

    Args:
        block: side of a block, in pixels.
        tables: gives the tables for a number of colours.
        whole: take images of whole blocks only.
    """

    __slots__ = ('block', 'whole', '_derive', '_tables')

    def __init__(self, block: int, tables: Callable[[int], BlockTables], whole: bool = False) -> None:
        self.block, self.whole, self._derive = block, whole, tables
        self._tables: dict[int, BlockTables] = {}

    @property
    def public_id(self) -> str:
        return f'of blocks of {self.block} x {self.block} pixels'

    def tables_of(self, colours: int = COLOURS) -> BlockTables:
        """The secret tables for a number of colours."""
        if colours not in self._tables:
            self._tables[colours] = self._derive(colours)
        return self._tables[colours]

    def encrypt(self, image: Any) -> Bytes:
        """Encrypt an image, or several of one size.

        Args:
            image: uint8, shape (H, W), (H, W, C) or (N, H, W, C); it stays as it is.

        Returns:
            Of the same shape and dtype.

        Raises:
            TransformError: it is no image of bytes, or not made of whole blocks where these are asked for.
        """
        return self._run(image, decrypt=False)

    def decrypt(self, image: Any) -> Bytes:
        """Undo :meth:`encrypt`; the same arguments and errors."""
        return self._run(image, decrypt=True)

    def leaks(self) -> dict[str, NDArray[Any]]:
        """The secret tables by name, for :mod:`keyseg_mm.runtime.leaks` only."""
        tables, found = self.tables_of(), {}
        if tables.order is not None:
            found = {'block permutation': tables.order, 'inverse block permutation': np.argsort(tables.order)}
        if tables.changed is not None:
            found['mask'] = tables.changed.astype(np.int8)
            found['signs'] = np.where(tables.changed, -1, 1).astype(np.int8)
        if not np.array_equal(tables.values, TOP - np.arange(256)):
            found['byte map'] = tables.values.astype(np.int64)
            found['inverse byte map'] = np.argsort(tables.values)
        return found

    def _run(self, image: Any, decrypt: bool) -> Bytes:
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim not in (2, 3, 4):
            got = f'{image.dtype} {image.shape}' if isinstance(image, np.ndarray) else type(image).__name__
            raise TransformError(
                f'image encryption takes images of bytes, uint8 (H, W, C), and met {got}; put it behind the last '
                'transform that changes the image, right before PackSegInputs, and load images without to_float32'
            )
        source = image[..., None] if image.ndim == 2 else image
        source = source[None] if source.ndim == 3 else source
        size = self.block
        if self.whole and (not source.size or source.shape[1] % size or source.shape[2] % size):
            high, wide = source.shape[1:3]
            raise TransformError(
                f'an image of {wide} x {high} pixels is not made of whole blocks of {size} x {size}; put '
                f"dict(type='ResizeToMultiple', size_divisor={size}) before the encryption"
            )
        result = np.empty(source.shape, np.uint8)
        for area, high, wide in _areas(source.shape[1:], size):
            parts = source[(slice(None), *area)]
            shape = (len(parts), parts.shape[1] // high, high, parts.shape[2] // wide, wide, -1)
            blocks = parts.reshape(shape).transpose(0, 1, 3, 2, 4, 5)
            changed = self._blocks(blocks.reshape(*blocks.shape[:3], -1), (high, wide, blocks.shape[-1]), decrypt)
            result[(slice(None), *area)] = (
                changed.reshape(blocks.shape).transpose(0, 1, 3, 2, 4, 5).reshape(parts.shape)
            )
        return result.reshape(image.shape)

    @unseen
    def _blocks(self, values: Bytes, shape: tuple[int, int, int], decrypt: bool) -> Bytes:
        """Encrypt or decrypt blocks of one shape (rows, columns, colours); their values are in the last dimension."""
        size, tables = self.block, self.tables_of(shape[2])
        order, changed = tables.order, tables.changed
        if shape[:2] != (size, size):
            inside = np.arange(size * size * shape[2]).reshape(size, size, -1)[: shape[0], : shape[1]].ravel()
            order = None if order is None else np.searchsorted(inside, order[np.isin(order, inside)])
            changed = None if changed is None else changed[inside]
        if decrypt:
            back = np.argsort(tables.values).astype(np.uint8)
            values = values if changed is None else np.where(changed, back[values], values)
            return values if order is None else np.take(values, np.argsort(order), axis=-1)
        moved = values if order is None else np.take(values, order, axis=-1)
        return moved if changed is None else np.where(changed, tables.values[moved], moved)


def _areas(shape: tuple[int, ...], block: int) -> Iterator[tuple[tuple[slice, slice], int, int]]:
    """The whole blocks, the rest at the right, at the bottom and in the corner, each with its blocks' size."""
    cuts = []
    for side in shape[:2]:
        whole = side - side % block
        cuts.append([(slice(0, whole), block)] * bool(whole) + [(slice(whole, side), side - whole)] * (side > whole))
    for rows, high in cuts[0]:
        for columns, wide in cuts[1]:
            yield (rows, columns), high, wide
