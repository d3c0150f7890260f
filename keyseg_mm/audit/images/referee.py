"""The referee of attacks on images: it alone has the key and the plain images, and it checks itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from keyseg_mm.audit.images.attack import KnownPairs, Restored
from keyseg_mm.audit.images.report import ImageCheck
from keyseg_mm.audit.images.scheme import Images, Scheme, cut
from keyseg_mm.audit.images.scoring import ImageScore, similarity
from keyseg_mm.bind import check_key, derive_cipher, verify
from keyseg_mm.errors import KeyMismatchError
from keyseg_mm.keys.key import SecretKey, wrong_key
from keyseg_mm.keys.secret import Secret
from keyseg_mm.maps.pixels import BlockCipher
from keyseg_mm.stamp import Stamp, stamps_of

_PROBES = 24  # random blocks by which a guess is compared with the cipher
_STRANGERS = 3  # random keys of the negative control
_DECRYPTED = 30.0  # dB that one of them must stay below
Convert = Callable[[Images], Images]


class ImageReferee(Secret):
    """Encrypts the images under attack, and scores what attackers make of them.

    Args:
        key: the true key.
        stamp: how images are encrypted.
        plain: the images under attack, uint8 (N, H, W, 3), red first, of whole blocks.

    Raises:
        KeyMismatchError: the stamp is of another key.
    """

    __slots__ = ('scheme', 'encrypted', '_stamp', '_plain', '_encrypt', '_decrypt')

    def __init__(self, key: SecretKey, stamp: Stamp, plain: Images) -> None:
        if stamp.key_id != key.id:
            raise KeyMismatchError(f'these images are encrypted with key {stamp.key_id}, and the key given is {key.id}')
        self.scheme, self._stamp, self._plain = Scheme.of(stamp), stamp, plain
        self._encrypt, self._decrypt = _cipher(key, stamp)
        self.encrypted = self._encrypt(plain)

    @property
    def public_id(self) -> str:
        return str(self.scheme)

    def pairs(self, plain: Images) -> KnownPairs:
        """Plain images and what the key makes of them: granted to attackers, or found out by them."""
        return KnownPairs(plain, self._encrypt(plain))

    def judge(self, restored: Restored) -> ImageScore:
        """How near the restored images are, and which share of random values a guess decrypts."""
        return ImageScore(**asdict(similarity(restored.images, self._plain)), found=self._found(restored.guess))

    def positive_control(self) -> ImageCheck:
        """The true cipher's own decryption must score full marks in the way that attacks are scored."""
        score = similarity(self._decrypt(self.encrypted), self._plain)
        return ImageCheck(score, score.exact == 1.0 and score.ssim > 1 - 1e-9)

    def negative_control(self, seed: int) -> ImageCheck:
        """Random keys' decryptions must not: the middle one's score, and whether the worst one fails as it should.

        The worst, because a block of one pixel has so few ciphers that a random key may well be right.
        """
        keys = [wrong_key(f'{seed}-{i}') for i in range(_STRANGERS)]
        scores = [similarity(_cipher(key, self._stamp)[1](self.encrypted), self._plain) for key in keys]
        scores.sort(key=lambda score: score.psnr)
        worst, middle = scores[0], scores[_STRANGERS // 2]
        return ImageCheck(middle, worst.psnr < _DECRYPTED and worst.exact == 0.0)

    def _found(self, guess: BlockCipher | None) -> float | None:
        """Share of the values of random blocks that a guess decrypts right."""
        if guess is None:
            return None
        block = self.scheme.block
        probe = np.random.default_rng(0).integers(0, 256, (1, block, _PROBES * block, 3), dtype=np.uint8)
        right = cut(guess.decrypt(self._encrypt(probe)), block) == cut(probe, block)
        return float(right.mean())


def trusted_stamp(key: SecretKey, state_dict: Mapping[str, Any]) -> Stamp | None:
    """The stamp of a model that takes encrypted images, checked; None where there is none.

    Raises:
        KeyMismatchError: another key's.
        IntegrityError: its MAC does not fit.
    """
    stamp = stamps_of(state_dict).get('')
    if stamp is None or not (stamp.images or stamp.embeddings):
        return None
    check_key(key, stamp)  # before its MAC could only be called wrong
    verify(key, stamp, state_dict)
    return stamp


def _cipher(key: SecretKey, stamp: Stamp) -> tuple[Convert, Convert]:
    """What the key does to images, red first, and how to undo it."""
    if stamp.embeddings:
        patches = derive_cipher(key, stamp.salt, stamp.embeddings[0])
        return patches.encrypt, patches.decrypt
    cipher = derive_cipher(key, stamp.salt, stamp.images[0])
    # the host loads blue first, and so EncryptImage numbers the values of a block
    return lambda x: cipher.encrypt(x[..., ::-1])[..., ::-1], lambda x: cipher.decrypt(x[..., ::-1])[..., ::-1]
