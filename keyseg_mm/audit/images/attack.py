"""What is public of an image encryption, and guesses at the secret map of a block's values.

A block of M by M pixels has ``3 M M`` values, numbered ``(row * M + column) * 3 + colour``, red first. All block-wise
encryptions of this package do to every block of every image: ``e[k] = f(v[order[k]])``, where f is one secret function
of bytes at some secret places k and nothing at the others. What is known of them differs by the :class:`Scheme`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from keyseg_mm.audit.engine.attack import BaseAttack, BaseAttempt, BaseCase, Grant, Progress, Registry
from keyseg_mm.errors import KeysegError
from keyseg_mm.maps.keyspace import bits_of_images, bits_of_patches
from keyseg_mm.maps.pixels import COLOURS, PATCH, BlockCipher, BlockTables

Images = NDArray[np.uint8]  # (N, H, W, 3), red first
Blocks = NDArray[np.uint8]  # (N, down, across, 3 M M)
BYTES = 256
_GREY = 118  # the grey that a meter takes for the mean of a scene (18 % reflectance) in 8-bit sRGB


@dataclass(frozen=True)
class Scheme:
    """An image encryption as its attacker knows it; all public. See :class:`keyseg_mm.mm.pipeline.EncryptImage`.

    Attributes:
        method: ``SHF``, ``NP``, ``FFX`` or ``PATCH``.
        block: side of a block, in pixels.
        permute, negate: of ``PATCH``; the other methods go by their names.
        salt: in hex; empty for none.
        key_id: public id of the key.
    """

    method: str
    block: int
    permute: str = 'all'
    negate: bool = True
    salt: str = ''
    key_id: str = ''

    def __str__(self) -> str:
        return f'{self.method}, block {self.block}, salt {self.salt or "none"}, key id {self.key_id}'

    @property
    def values(self) -> int:
        """Values of a block."""
        return COLOURS * self.block**2

    @property
    def moves(self) -> str:
        """Which values change places: ``'all'``, across colours too, ``'channel'``, within each colour, ``'none'``."""
        return self.permute if self.method == PATCH else 'all' if self.method == 'SHF' else 'none'

    @property
    def negates(self) -> bool:
        """Whether secret places hold 255 - p; half of them in NP, and any number in PATCH."""
        return self.method == 'NP' or (self.method == PATCH and self.negate)

    @property
    def maps_bytes(self) -> bool:
        """Whether a secret half of the places holds a secret byte for p."""
        return self.method == 'FFX'

    @property
    def ciphers(self) -> float:
        """log2 of the number of different ciphers, exact; the key that chooses among them has 256 bits."""
        if self.method == PATCH:
            return bits_of_patches(self.block, self.permute, self.negate)
        return bits_of_images(self.method, self.block)


def block_map(block: int, order: Any = None, changed: Any = None, table: Any = None) -> BlockCipher:
    """A map of blocks that an attacker made up.

    Args:
        block: side of a block, in pixels.
        order: ``e[k] = f(v[order[k]])``, shape (3 M M,); None for no permutation.
        changed: at which k the function of bytes is applied, boolean (3 M M,); None for none.
        table: that function, a permutation of 0 to 255, shape (256,); None for 255 - p.
    """
    tables = BlockTables(order, changed, table)
    return BlockCipher(block, lambda _: tables, whole=True)


def cut(images: Images, block: int) -> Blocks:
    """Images (N, H, W, 3) as blocks of values (N, H / M, W / M, 3 M M).

    Raises:
        KeysegError: they are not made of whole blocks.
    """
    count, high, wide, colours = images.shape
    if high % block or wide % block or colours != COLOURS:
        raise KeysegError(f'images of {wide} x {high} pixels are not made of whole blocks of {block} x {block}')
    parts = images.reshape(count, high // block, block, wide // block, block, colours)
    return parts.transpose(0, 1, 3, 2, 4, 5).reshape(count, high // block, wide // block, -1)


@dataclass(frozen=True)
class OwnPhotos(Grant):
    """Plain photos of the attacker's, or anybody's, of the size of those under attack; none of them is under attack."""

    name: ClassVar[str] = 'public'
    images: Images


@dataclass(frozen=True)
class KnownPairs(Grant):
    """Plain photos and what the true key makes of them; none of them is under attack."""

    name: ClassVar[str] = 'pairs'
    plain: Images
    encrypted: Images


@dataclass(frozen=True, eq=False)
class ImageCase(BaseCase):
    """Everything that an attacker of encrypted images holds.

    Raises:
        SecretExposedError: a field or grant holds a key or a cipher.
    """

    scheme: Scheme  # method, block and key id: public
    encrypted: Images  # the images under attack, uint8 (N, H, W, 3) of whole blocks, red first, all under one key

    @property
    def photos(self) -> Images | None:
        """The attacker's own, if there are any."""
        return self[OwnPhotos].images if OwnPhotos in self else None


@dataclass
class Restored(BaseAttempt):
    """What an attack came up with."""

    images: Images  # one for each encrypted image, uint8 (N, H, W, 3)
    guess: BlockCipher | None = None  # its estimate of the cipher, if it makes one


class ImageAttack(BaseAttack[ImageCase, Restored]):
    """Base of all attacks on encrypted images. A subclass's docstring says how it works."""


ATTACKS: Registry[ImageAttack] = Registry()


CONTROLS: Registry[ImageAttack] = Registry()


register = ATTACKS.register


class Control(ImageAttack):
    """Base of the controls."""

    source, cost = 'control', 'none'


@CONTROLS.register
class AsItIs(Control):
    """The encrypted images, looked at as they are."""

    name, title = 'as-is', 'the encrypted image as it is'

    def run(self, case: ImageCase, progress: Progress) -> Restored:
        return Restored(case.encrypted.copy())


@CONTROLS.register
class Flat(Control):
    """One colour everywhere: the mean of the attacker's photos, or mid-grey where there are none."""

    name, title = 'flat', 'one colour everywhere'
    helped_by = frozenset({OwnPhotos})

    def run(self, case: ImageCase, progress: Progress) -> Restored:
        colour = np.full(3, _GREY) if case.photos is None else case.photos.mean((0, 1, 2))
        return Restored(np.broadcast_to(colour.round().astype(np.uint8), case.encrypted.shape).copy())


@CONTROLS.register
class MeanPhoto(Control):
    """The mean of the attacker's photos, pixel by pixel, for every image."""

    name, title = 'mean-photo', "the mean of the attacker's photos"
    needs = frozenset({OwnPhotos})

    def run(self, case: ImageCase, progress: Progress) -> Restored:
        mean = case[OwnPhotos].images.mean(0).round().astype(np.uint8)
        return Restored(np.broadcast_to(mean, case.encrypted.shape).copy())
