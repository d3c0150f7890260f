"""How near restored images are to the plain ones: PSNR and SSIM.

Written out over scipy, which this package has anyway, in the place of scikit-image and its six dependencies; the tests
compare with figures of scikit-image 0.26.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mmengine.config import Config
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter  # type: ignore[import-untyped]

from keyseg_mm.audit.engine.datasets import ENCRYPTING
from keyseg_mm.audit.engine.runner import Check
from keyseg_mm.audit.images.attack import Images, KnownPairs, Restored, Scheme
from keyseg_mm.audit.report.page import colour_png, decibels
from keyseg_mm.bind import derive_cipher, derive_patches
from keyseg_mm.checkpoint.files import read_checkpoint
from keyseg_mm.entries import EmbeddingEntry, ImageEntry
from keyseg_mm.errors import KeysegError, PlanMismatchError
from keyseg_mm.keys.identity import Key
from keyseg_mm.keys.key import wrong_key
from keyseg_mm.keys.secret import Secret
from keyseg_mm.maps.pixels import PATCH, BlockCipher
from keyseg_mm.mm.config import pipeline_of, type_of
from keyseg_mm.mm.pipeline import EncryptImage
from keyseg_mm.seal.sections import trusted_stamp
from keyseg_mm.stamp import stamps_of

TOP = 255.0
# Wang, Bovik, Sheikh and Simoncelli, "Image Quality Assessment", IEEE TIP 13(4), 2004: an 11 x 11 window of sigma 1.5
_SIGMA, _REACH = 1.5, 5
_C1, _C2 = (0.01 * TOP) ** 2, (0.03 * TOP) ** 2
_PROBES = 24  # random blocks by which a guess is compared with the cipher
_STRANGERS = 3  # random keys of the negative control
_DECRYPTED = 30.0  # dB that one of them must stay below
_SETTINGS = ('method', 'block', 'salt')


@dataclass(frozen=True)
class ImageScore:
    """How near restored images are to the plain ones."""

    psnr: float  # of the mean squared error over all values of all images, in dB; infinite where nothing differs
    ssim: float  # mean of the images'; 1 for equal ones
    exact: float  # share of the images that agree bit for bit
    found: float | None = None  # share of random values that a guess at the cipher decrypts; None without a guess

    def __str__(self) -> str:
        return f'SSIM {self.ssim:.2f}, {decibels(self.psnr)}'


def similarity(restored: Images, plain: Images, found: float | None = None) -> ImageScore:
    """Score images (N, H, W, 3) of bytes.

    Raises:
        KeysegError: they are not as many, as large, or not of bytes.
    """
    if restored.shape != plain.shape or restored.dtype != np.uint8 or plain.dtype != np.uint8:
        raise KeysegError(f'{restored.dtype} {restored.shape} cannot be compared with {plain.dtype} {plain.shape}')
    pairs = list(zip(restored, plain))
    error = float(np.mean([np.mean((a.astype(np.float64) - b) ** 2) for a, b in pairs]))
    return ImageScore(
        math.inf if error == 0 else 10 * math.log10(TOP**2 / error),
        float(np.mean([ssim(a, b) for a, b in pairs])),
        float(np.mean([np.array_equal(a, b) for a, b in pairs])),
        found,
    )


def ssim(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """Structural similarity of two images (H, W, 3): the mean over pixels and colours, the window's margin left out.

    Images smaller than the window count whole.
    """
    x, y = a.astype(np.float64), b.astype(np.float64)
    mean_x, mean_y = _local(x), _local(y)
    var_x, var_y = _local(x * x) - mean_x**2, _local(y * y) - mean_y**2
    both = _local(x * y) - mean_x * mean_y
    found = (2 * mean_x * mean_y + _C1) * (2 * both + _C2) / ((mean_x**2 + mean_y**2 + _C1) * (var_x + var_y + _C2))
    if min(found.shape[:2]) > 2 * _REACH:
        found = found[_REACH:-_REACH, _REACH:-_REACH]
    return float(found.mean())


def _local(x: NDArray[np.float64]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = gaussian_filter(x, (_SIGMA, _SIGMA, 0), radius=(_REACH, _REACH, 0))
    return found


class ImageReferee(Secret):
    """Encrypts the images under attack as the pipeline does, and scores what attackers make of them.

    Args:
        key: the true key.
        scheme: how images are encrypted.
        plain: the images under attack, uint8 (N, H, W, 3), red first, of whole blocks.
    """

    __slots__ = ('scheme', 'encrypted', '_plain', '_cipher')
    scores, held_out = ImageScore, None

    def __init__(self, key: Key, scheme: Scheme, plain: Images) -> None:
        self.scheme, self._plain, self._cipher = scheme, plain, _cipher(key, scheme)
        self.encrypted = self._encrypt(plain)

    @property
    def public_id(self) -> str:
        return str(self.scheme)

    def pairs(self, plain: Images) -> KnownPairs:
        """Plain images and what the key makes of them: granted to attackers, or found out by them."""
        return KnownPairs(plain, self._encrypt(plain))

    def judge(self, restored: Restored) -> ImageScore:
        """How near the restored images are, and which share of random values a guess decrypts."""
        return similarity(restored.images, self._plain, self._found(restored.guess))

    def pictured(self, attempt: Restored, shown: Sequence[int]) -> tuple[ImageScore, tuple[str, ...]]:
        """:meth:`judge`, and some of the restored images as base64 PNGs."""
        return self.judge(attempt), tuple(colour_png(attempt.images[i]) for i in shown)

    def positive_control(self) -> Check[ImageScore]:
        """The true cipher's own decryption must score full marks in the way that attacks are scored."""
        score = similarity(_run(self._cipher.decrypt, self.scheme, self.encrypted), self._plain)
        return Check(score, score.exact == 1.0 and score.ssim > 1 - 1e-9)

    def negative_control(self, seed: int) -> Check[ImageScore]:
        """Random keys' decryptions must not: the middle one's score, and whether the worst one fails as it should.

        The worst, because a block of one pixel has so few ciphers that a random key may well be right.
        """
        ciphers = [_cipher(wrong_key(f'{seed}-{i}'), self.scheme) for i in range(_STRANGERS)]
        scores = [similarity(_run(c.decrypt, self.scheme, self.encrypted), self._plain) for c in ciphers]
        scores.sort(key=lambda score: score.psnr)
        worst, middle = scores[0], scores[_STRANGERS // 2]
        return Check(middle, worst.psnr < _DECRYPTED and worst.exact == 0.0)

    def _found(self, guess: BlockCipher | None) -> float | None:
        """Share of the values of random blocks that a guess decrypts right."""
        if guess is None:
            return None
        block = self.scheme.block
        probe = np.random.default_rng(0).integers(0, 256, (1, block, _PROBES * block, 3), dtype=np.uint8)
        return float((guess.decrypt(self._encrypt(probe)) == probe).mean())

    def _encrypt(self, plain: Images) -> Images:
        return _run(self._cipher.encrypt, self.scheme, plain)


def _cipher(key: Key, scheme: Scheme) -> BlockCipher:
    salt = bytes.fromhex(scheme.salt)
    if scheme.method == PATCH:
        return derive_patches(key, salt, scheme.block, scheme.permute, scheme.negate)
    return derive_cipher(key, salt, ImageEntry(scheme.method, scheme.block, scheme.salt))


def _run(change: Callable[[Images], Images], scheme: Scheme, images: Images) -> Images:
    """Encrypt or decrypt images as the pipeline does: all ciphers but PATCH count colours as the host loads them."""
    return change(images) if scheme.method == PATCH else change(images[..., ::-1])[..., ::-1]


def scheme_of(cfg: Config, checkpoint: Path | None, key: Key) -> Scheme:
    """How images are encrypted: by the config's test pipeline, or as the stamp of a checkpoint says.

    Raises:
        KeysegError: neither says that images are encrypted, they contradict each other, or the key is another.
    """
    steps = [step for step in pipeline_of(cfg) if type_of(step) in ENCRYPTING]
    if len(steps) > 1:
        raise KeysegError(
            'the test pipeline of this config encrypts its images more than once; this audit is for one encryption: '
            'audit a config that has the outer one only'
        )
    step = {'method': PATCH} if not steps else {name: steps[0][name] for name in _SETTINGS if name in steps[0]}
    made = EncryptImage(key, **step)
    weights = read_checkpoint(checkpoint)['state_dict'] if checkpoint else {}
    stamp = stamps_of(weights).get('')
    if stamp and stamp.embeddings:
        made.follow(stamp, weights)
    elif stamp and stamp.images:
        trusted_stamp(key, weights)
        if len(stamp.images) > 1 or (steps and made.entry != stamp.images[0]):
            raise PlanMismatchError(
                f'the config has {made!r}, and {checkpoint} wants {"; ".join(map(str, stamp.images))}; audit one of '
                'them: leave the checkpoint out, or give a config with that encryption and no other'
            )
        entry = stamp.images[0]
        made = EncryptImage(key, entry.method, entry.block, entry.salt or None)
    if made.entry is None:
        raise KeysegError(
            f'this config{f" and {checkpoint} encrypt" if checkpoint else " encrypts"} no images: put '
            "dict(type='keyseg_mm.EncryptImage', ...) into its test pipeline, or give a checkpoint of "
            '`keyseg lock --scheme patches` with --images; CHECKPOINT alone is for the audit of a model'
        )
    return _scheme(made.entry, made.salt, key.id)


def _scheme(entry: EmbeddingEntry | ImageEntry, salt: bytes, key_id: str) -> Scheme:
    if isinstance(entry, ImageEntry):
        return Scheme(entry.method, entry.block, salt=entry.salt, key_id=key_id)
    return Scheme(PATCH, entry.patch, entry.permute, entry.negate, salt.hex(), key_id)
