"""What an attacker of encrypted images holds, and what an attack on them is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from keyseg_mm.audit.engine.attack import BaseAttack, BaseAttempt, BaseCase, Grant, Registry
from keyseg_mm.audit.images.scheme import Images, Scheme
from keyseg_mm.errors import KeysegError
from keyseg_mm.maps.pixels import COLOURS, BlockCipher


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

    Attributes:
        scheme: method, block and key id: public.
        encrypted: the images under attack, uint8 (N, H, W, 3), red first, all under one key.

    Raises:
        SecretExposedError: a field or grant holds a key or a cipher.
        KeysegError: images are not as they should be.
    """

    scheme: Scheme
    encrypted: Images

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check('encrypted', self.encrypted)
        if OwnPhotos in self:
            self._check('public', self[OwnPhotos].images)
        if KnownPairs in self:
            self._check('pairs, plain', self[KnownPairs].plain)
            self._check('pairs, encrypted', self[KnownPairs].encrypted)

    def _check(self, name: str, images: Any) -> None:
        shape: Any = getattr(images, 'shape', ())
        block = self.scheme.block
        good = isinstance(images, np.ndarray) and images.dtype == np.uint8 and len(shape) == 4 and shape[0]
        if not good or shape[3] != COLOURS or shape[1] % block or shape[2] % block:
            raise KeysegError(
                f'{name}: images under attack are uint8 (N, H, W, 3) of whole blocks of {block} x {block}, not {shape}'
            )

    @property
    def rng(self) -> np.random.Generator:
        """A fresh generator of the case's seed."""
        return np.random.default_rng(self.seed)


@dataclass
class Restored(BaseAttempt):
    """What an attack came up with.

    Attributes:
        images: one for each encrypted image, uint8 (N, H, W, 3).
        guess: its estimate of the cipher, if it makes one.
    """

    images: Images
    guess: BlockCipher | None = None


class ImageAttack(BaseAttack[ImageCase, Restored]):
    """Base of all attacks on encrypted images. A subclass's docstring says how it works."""

    @classmethod
    def possible(cls, case: ImageCase) -> bool:
        return cls.fits(case.scheme) and super().possible(case)

    @classmethod
    def fits(cls, scheme: Scheme) -> bool:
        """Whether the attack makes sense against such an encryption."""
        return True


ATTACKS: Registry[ImageAttack] = Registry()
CONTROLS: Registry[ImageAttack] = Registry()
register = ATTACKS.register
