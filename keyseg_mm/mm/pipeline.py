"""``EncryptImage``, a step of mmseg's data pipelines."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform

from keyseg_mm.bind import derive_cipher
from keyseg_mm.entries import EmbeddingEntry, ImageEntry
from keyseg_mm.errors import KeyMismatchError, PlanMismatchError, SecretExposedError
from keyseg_mm.keys.held import hold
from keyseg_mm.keys.identity import Identity, Key
from keyseg_mm.keys.key import Material, SecretKey
from keyseg_mm.keys.locator import locate
from keyseg_mm.maps.pixels import PATCH, BlockCipher, Bytes, check_method
from keyseg_mm.mm.registry import TRANSFORMS
from keyseg_mm.seal.sections import trusted_stamp
from keyseg_mm.stamp import Stamp, parse_salt
from keyseg_mm.wrapping import open_envelope

logger = logging.getLogger('keyseg_mm')

DEFAULT_BLOCK = 8
_FIELDS = ('img', 'img2')  # change detection loads a second picture
_PUBLIC = ('method', 'entry', 'salt', 'locator', 'stamp')


@TRANSFORMS.register_module()
class EncryptImage(BaseTransform):
    """Encrypts images block by block; see :mod:`keyseg_mm.maps.pixels` for the methods and their papers.

    With ``SHF``, ``NP`` and ``FFX`` in training and in testing: a model that learns such images works with that key
    only. With ``PATCH`` in testing: for a model that ``keyseg lock --scheme patches`` made, whose stamp says how; a
    Runner with a ``keyseg_mm.GuardHook`` takes it from the checkpoint.

    Put it right before ``PackSegInputs``, in every pipeline: what comes before works on plain images, and whatever
    moves or changes pixels after it breaks the blocks. In a config:
    ``dict(type='keyseg_mm.EncryptImage', method='SHF', block=8, key='file:keys/my.key')``.

    Pickling, as data loaders with spawned workers do, takes the locator along and not the key; it is followed again
    there.

    Args:
        key: key locator, see :mod:`keyseg_mm.keys.locator`. ``none`` leaves images plain, ``random:SEED`` encrypts them
            with a wrong key, both on purpose and with a warning.
        method: ``SHF``, ``NP``, ``FFX`` or ``PATCH``.
        block: side of a block in pixels, 1 to 64 (8); none with ``PATCH``.
        salt: public, 32 hex digits, so that one key encrypts the images of another model otherwise; none with
            ``PATCH``.

    Required keys: img (img2 too, if it is there), uint8, blue first. Modified keys: the same.

    Raises:
        KeyFileError: no key there, before any image is loaded.
        TransformError: a bad option, or an image that is not uint8.
        PlanMismatchError: ``PATCH`` with a block or salt, or without a checkpoint that says how.
    """

    def __init__(self, key: Any, method: str = 'SHF', block: int | None = None, salt: str | None = None) -> None:
        self.method, self.locator, self.salt = method, key, b''
        self.stamp: Stamp | None = None  # that is followed
        check_method(method, DEFAULT_BLOCK if block is None else block)
        self.entry: EmbeddingEntry | ImageEntry | None = None
        if method != PATCH:
            public = '' if salt is None else parse_salt(salt).hex()
            self.entry = ImageEntry(method, DEFAULT_BLOCK if block is None else block, public)
        elif block is not None or salt is not None:
            raise PlanMismatchError(f'{PATCH} takes block and salt from the checkpoint; leave them out')
        self._locate()
        if self.key is None:
            logger.warning("key='none': images stay PLAIN; a model that was trained on encrypted ones gives rubbish")
        elif self.deliberate:
            logger.warning('a wrong key, %s, on purpose: images are encrypted as by a stranger', self.key.id)

    def _locate(self) -> None:
        located = locate(self.locator)
        self.key: Key | None = located.key
        hold(self.key)
        self.deliberate = located.deliberate
        self._cipher: BlockCipher | None = None

    @property
    def learnt(self) -> ImageEntry | None:
        """What a stamp says of these images where a model learns them; None where they are plain."""
        return self.entry if self.key is not None and isinstance(self.entry, ImageEntry) else None

    @property
    def cipher(self) -> BlockCipher | None:
        """The secret cipher; None where images stay plain.

        Raises:
            PlanMismatchError: ``PATCH``, and no checkpoint said how.
        """
        if self.key is not None and self._cipher is None:
            if self.entry is None:
                raise PlanMismatchError(
                    'EncryptImage waits for a checkpoint of `keyseg lock --scheme patches` to say how: give a Runner '
                    "custom_hooks=[dict(type='keyseg_mm.GuardHook')], or use `keyseg tool encrypt_images`"
                )
            key: Material = self.key
            if self.stamp is not None and not self.deliberate:
                key = open_envelope(self.key, self.stamp).features
            self._cipher = derive_cipher(key, self.salt, self.entry)
        return self._cipher

    def follow(self, stamp: Stamp, state_dict: Mapping[str, Any]) -> None:
        """Encrypt as the stamp of a model with an encrypted patch embedding says.

        Args:
            stamp: the stamp.
            state_dict: that it came in: who has no key could else have weaker steps put into it.

        Raises:
            KeyMismatchError: another key's.
            PlanMismatchError: the config says otherwise.
            IntegrityError: it was altered.
        """
        if self.method != PATCH:
            raise PlanMismatchError(f'the pipeline has {self!r}, and the checkpoint wants method={PATCH!r}')
        if self.key is not None and not self.deliberate:
            trusted_stamp(self.key, state_dict)
        self.entry, self.salt, self.stamp, self._cipher = stamp.embeddings[0], stamp.salt, stamp, None

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Encrypt the images of a sample."""
        cipher = self.cipher
        for field in _FIELDS:
            if field in results and cipher is not None:
                results[field] = self._run(results[field], cipher.encrypt)
        return results

    def decrypt(self, image: Bytes) -> Bytes:
        """Undo the encryption of one image, uint8 (H, W, C) or (H, W)."""
        cipher = self.cipher
        return image if cipher is None else self._run(image, cipher.decrypt)

    def _run(self, image: Any, change: Any) -> Bytes:
        """The patch cipher counts colours red first, and the host loads blue first."""
        if self.method != PATCH or not isinstance(image, np.ndarray) or image.ndim != 3:
            found: Bytes = change(image)
            return found
        return np.ascontiguousarray(change(image[..., ::-1])[..., ::-1])

    def __getstate__(self) -> dict[str, Any]:
        if isinstance(self.locator, (SecretKey, Identity)):
            raise SecretExposedError(
                'refused to pickle an EncryptImage that was given a key itself; give it a locator, as file:PATH, '
                'which another process can follow'
            )
        return {**{name: getattr(self, name) for name in _PUBLIC}, 'key_id': self.key.id if self.key else None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        expected = state.pop('key_id')
        self.__dict__.update(state)
        self._locate()
        found = self.key.id if self.key else None
        if found != expected:
            raise KeyMismatchError(
                f'a data loader worker found key {found} where the run began with {expected}: the key was replaced '
                'meanwhile; start the run again'
            )

    def __deepcopy__(self, memo: Any) -> EncryptImage:
        return self  # a checkpoint that says how is followed by all copies alike

    def __repr__(self) -> str:
        return f'EncryptImage({self.learnt or self.method}, key id {self.key.id if self.key else "none"})'


def chains(runner: Any, loop: str) -> Iterator[list[Any]]:
    """Every sequence of steps that an image of a loop's data may go through, of all data sets that it is made of."""
    built = getattr(runner, f'_{loop}_loop', None)
    dataset = getattr(getattr(built, 'dataloader', None), 'dataset', None)
    if dataset is not None:
        yield from chains_of(dataset)


def chains_of(dataset: Any) -> Iterator[list[Any]]:
    """:func:`chains` of a data set: those of what it wraps, followed by its own steps."""
    parts = getattr(dataset, 'datasets', None) or [getattr(dataset, 'dataset', None)]
    inner = [chain for part in parts if part is not None for chain in chains_of(part)] or [[]]
    for before in inner:
        for own in _unrolled(getattr(dataset, 'pipeline', None)):
            yield [*before, *own]


def _unrolled(steps: Any) -> Iterator[list[Any]]:
    """A pipeline, or several where test-time augmentation holds several, without the steps that only hold others."""
    steps = list(getattr(steps, 'transforms', None) or (steps if isinstance(steps, (list, tuple)) else []))
    for index, step in enumerate(steps):
        branches = getattr(step, 'subroutines', None) or ([step] if hasattr(step, 'transforms') else [])
        if branches:
            for branch in branches:
                for inner in _unrolled(branch):
                    yield from _unrolled([*steps[:index], *inner, *steps[index + 1 :]])
            return
    yield steps
