"""``EncryptPatches``: encrypts images in a data pipeline, so that the host's own tools run on encrypted images."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform

from keyseg_mm.bind import derive_cipher, verify
from keyseg_mm.errors import KeyMismatchError, PlanMismatchError, TransformError
from keyseg_mm.keys.key import SecretKey
from keyseg_mm.keys.locator import locate
from keyseg_mm.maps.patches import PatchCipher, check_steps
from keyseg_mm.mm.registry import TRANSFORMS
from keyseg_mm.patchplan import PatchPlan
from keyseg_mm.stamp import SALT_BYTES

logger = logging.getLogger('keyseg_mm')


def parse_salt(text: Any) -> bytes:
    """The salt of a config or a command line.

    Raises:
        PlanMismatchError: it is not 16 bytes in hex.
    """
    try:
        salt = bytes.fromhex(text)
    except (TypeError, ValueError):
        salt = b''
    if len(salt) != SALT_BYTES:
        raise PlanMismatchError(f'salt is {2 * SALT_BYTES} hex digits; `keyseg show CHECKPOINT` tells those of a model')
    return salt


@TRANSFORMS.register_module()
class EncryptPatches(BaseTransform):  # type: ignore[misc]
    """Encrypt the image block by block, as the locked patch embedding of a vision transformer wants it.

    It comes after everything that resizes, crops or flips, and works on the 8-bit image. In a config:
    ``dict(type='keyseg_mm.EncryptPatches', key='file:...')``, with
    ``custom_hooks=[dict(type='keyseg_mm.PatchGuardHook')]``, which reads the rest from the checkpoint's stamp. Where no
    Runner loads the checkpoint, ``patch`` and ``salt`` too.

    Required and modified key: ``img``, (H, W, 3), uint8, blue first, as the host loads it.

    Args:
        key: key locator; ``none`` leaves images plain, on purpose, and ``random:SEED`` takes a wrong key, on purpose.
        patch: side of a block, in pixels: the model's patch size.
        salt: the model's, 32 hex digits; `keyseg show` tells it.
        permute, negate: the model's steps; see :meth:`keyseg_mm.maps.patches.PatchCipher.derive`.

    Raises:
        KeyFileError: no key there.
        PlanMismatchError, TransformError: a bad salt, patch or step.
    """

    def __init__(
        self, key: str, patch: int | None = None, salt: str | None = None, permute: str = 'all', negate: bool = True
    ) -> None:
        self.locator = key
        self._located = locate(key)  # now, so that a missing key stops the run before anything is built
        self.patch, self.permute, self.negate = patch, permute, negate
        self.salt = None if salt is None else parse_salt(salt)
        self._cipher: PatchCipher | None = None
        if (patch is None) != (salt is None):
            raise PlanMismatchError('give patch and salt, or neither, to take them from the checkpoint')
        check_steps(2 if patch is None else patch, permute, negate)
        if self._located.deliberate:
            kind = 'without encryption' if self._located.key is None else 'encrypted with a wrong key'
            logger.warning('key=%r: images are handed on %s, on purpose', key, kind)

    @property
    def key(self) -> SecretKey | None:
        """The secret key."""
        return self._located.key

    def follow(self, plan: PatchPlan, state_dict: dict[str, Any]) -> None:
        """Encrypt as a checkpoint's stamp says.

        Args:
            plan: the stamp.
            state_dict: that it came in, for its MAC: who has no key could else have weaker steps put into it.

        Raises:
            KeyMismatchError: another key's.
            PlanMismatchError: the config says otherwise.
            IntegrityError: the MAC does not fit.
        """
        if self.key is None:
            return
        if not self._located.deliberate:
            if plan.key_id != self.key.id:
                raise KeyMismatchError(
                    f'this checkpoint takes images encrypted with key {plan.key_id}, and the key of EncryptPatches is '
                    f'{self.key.id}'
                )
            verify(self.key, plan, state_dict)
        theirs = (plan.patch, plan.salt, plan.permute, plan.negate)
        if self.salt is not None and (self.patch, self.salt, self.permute, self.negate) != theirs:
            raise PlanMismatchError(
                f'EncryptPatches has {self!r}, and the checkpoint wants patch={plan.patch}, '
                f'salt={plan.salt.hex()!r}, permute={plan.permute!r}, negate={plan.negate}'
            )
        self.patch, self.salt, self.permute, self.negate = theirs
        self._cipher = None

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Encrypt ``results['img']``."""
        cipher = self._get_cipher()
        if cipher is not None:
            image = results['img']
            p = cipher.patch
            if image.shape[0] % p or image.shape[1] % p:
                raise TransformError(
                    f'an image of {image.shape[1]} x {image.shape[0]} pixels is not made of whole blocks of {p} x {p}; '
                    f"put dict(type='ResizeToMultiple', size_divisor={p}) before EncryptPatches"
                )
            results['img'] = np.ascontiguousarray(cipher(image[..., ::-1])[..., ::-1])
        return results

    def _get_cipher(self) -> PatchCipher | None:
        if self.key is None:
            return None
        if self._cipher is None:
            if self.patch is None or self.salt is None:
                raise PlanMismatchError(
                    'EncryptPatches knows neither patch nor salt: give both (`keyseg show CHECKPOINT` tells them), or '
                    "custom_hooks=[dict(type='keyseg_mm.PatchGuardHook')] and a checkpoint of `keyseg lock-patches`"
                )
            self._cipher = derive_cipher(self.key, self.salt, self.patch, self.permute, self.negate)
        return self._cipher

    def __getstate__(self) -> dict[str, Any]:
        """Without secrets: a worker process that gets a pickle of this follows the locator again."""
        return {**self.__dict__, '_located': None, '_cipher': None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _located=locate(state['locator']))

    def __repr__(self) -> str:
        salt = self.salt.hex() if self.salt else None
        return f'EncryptPatches(patch={self.patch}, salt={salt!r}, permute={self.permute!r}, negate={self.negate})'
