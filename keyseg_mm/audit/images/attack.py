"""What an attacker of encrypted images holds, and what an attack on them is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from keyseg_mm.audit.engine.attack import BaseAttack, BaseAttempt, BaseCase, Grant, Registry
from keyseg_mm.audit.images.scheme import Images, Scheme
from keyseg_mm.maps.pixels import BlockCipher


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
        encrypted: the images under attack, uint8 (N, H, W, 3) of whole blocks, red first, all under one key.

    Raises:
        SecretExposedError: a field or grant holds a key or a cipher.
    """

    scheme: Scheme
    encrypted: Images

    @property
    def photos(self) -> Images | None:
        """The attacker's own, if there are any."""
        return self[OwnPhotos].images if OwnPhotos in self else None


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


ATTACKS: Registry[ImageAttack] = Registry()
CONTROLS: Registry[ImageAttack] = Registry()
register = ATTACKS.register
