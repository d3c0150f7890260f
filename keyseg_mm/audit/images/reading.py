"""What an audit of images reads: the plain photos, and how a config or a checkpoint says that they are encrypted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmengine.config import Config

from keyseg_mm.audit.engine.datasets import ENCRYPTING, PhotoSet, nested_shares, pipeline_of, type_of
from keyseg_mm.audit.engine.suites import ImageSuite, Say
from keyseg_mm.audit.images.scheme import Images
from keyseg_mm.checkpoint.files import read_checkpoint
from keyseg_mm.entries import EmbeddingEntry, ImageEntry
from keyseg_mm.errors import KeysegError, PlanMismatchError
from keyseg_mm.maps.pixels import COLOURS, PATCH, check_method, check_steps
from keyseg_mm.stamp import SALT_BYTES, Stamp, parse_salt

#: Gives the checked stamp of a state_dict, or None.
Trust = Callable[[Mapping[str, Any]], Stamp | None]
# Steps from the first of which on an image is no plain one any more, or no image; labels are of no interest here.
_ENDS = (*ENCRYPTING, 'PackSegInputs')
_SKIPPED = ('LoadAnnotations',)


class PlainPhotos(PhotoSet):
    """One data set of a config, as plain photos of one common size, red first.

    Args:
        cfg: the config.
        split: ``'train'`` or ``'test'``.
        block: sides become multiples of it, of two at least.
        longest: as of :class:`PhotoSet`, with its errors.
    """

    def __init__(self, cfg: Config, split: str, block: int, longest: int | None) -> None:
        super().__init__(cfg, split, _until_encrypted, block, longest, least=2)

    def load(self, count: int | None, seed: int, but: frozenset[str] = frozenset()) -> tuple[Images, frozenset[str]]:
        """Photos chosen by chance, all of the size of the first one ever loaded, and their files.

        Args:
            count: how many, at most; None for all.
            seed: of the choice.
            but: files to leave out.

        Raises:
            KeysegError: one cannot be read, or none is left.
        """
        images: list[Images] = []
        files: set[str] = set()
        for image, name in self.read(nested_shares(len(self), (1.0,), seed, None)[1.0], _image_of):
            if name not in but or not name:
                images.append(self._sized(image))
                files.add(name)
            if len(images) == count:
                break
        if not images:
            raise KeysegError(f'{self._where}: all its photos are among those under attack; give the attacker others')
        return np.stack(images), frozenset(files)

    def _sized(self, image: Images) -> Images:
        """Red first, scaled to the common size."""
        size = self.fit(image.shape[:2])
        image = np.ascontiguousarray(image[..., ::-1])
        return image if image.shape[:2] == size else cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA)


def read_photos(
    cfg: Config, suite: ImageSuite, block: int, seed: int, say: Say
) -> tuple[Images, Images, tuple[int, int] | None]:
    """Images to be attacked, an attacker's photos, and the former's size before they were scaled.

    Raises:
        KeysegError: there are none, or they cannot be read.
    """
    test, train = (PlainPhotos(cfg, split, block, suite.longest) for split in ('test', 'train'))
    say(f'reading {min(suite.scored or len(test), len(test))} images to attack')
    attacked, files = test.load(suite.scored, seed)
    train.size = test.size
    say(f"reading {min(suite.photos or len(train), len(train))} photos of the attacker's")
    public, _ = train.load(suite.photos, seed, files)
    return attacked, public, test.full_size


def _image_of(sample: Any) -> tuple[Images, str]:
    """A sample's image and its file."""
    image = sample['img']
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.shape[2:] != (COLOURS,):
        raise KeysegError('no colour image of bytes where it is to be encrypted')
    return image, str(sample.get('img_path', ''))


def _until_encrypted(pipeline: list[Any]) -> list[Any]:
    """The steps before the first that encrypts."""
    ends = [i for i, step in enumerate(pipeline) if type_of(step) in _ENDS]
    return [step for step in pipeline[: min(ends, default=len(pipeline))] if type_of(step) not in _SKIPPED]


def stamp_of(cfg: Config, checkpoint: Path | None, key_id: str, trust: Trust) -> Stamp:
    """How images are encrypted.

    Args:
        cfg: the config, whose test pipeline may encrypt.
        checkpoint: whose stamp or meta may say it; may be None.
        key_id: of the true key.
        trust: reads a state_dict's stamp with the key.

    Raises:
        KeysegError: neither says that images are encrypted, they contradict each other, or the key is another.
    """
    named = _of_config(cfg, key_id)
    stamped = _of_checkpoint(checkpoint, trust) if checkpoint else None
    if stamped is None:
        if named is None:
            raise KeysegError(_nothing(checkpoint))
        return named
    if named is not None and (named.key_id, named.images) != (stamped.key_id, stamped.images):
        raise PlanMismatchError(
            f'the config encrypts images as {_words(named)}, and {checkpoint} wants {_words(stamped)}; audit one of '
            'them: leave the checkpoint out, or give the config that goes with it'
        )
    return stamped


def encryption_step(cfg: Config) -> dict[str, Any] | None:
    """The one ``EncryptImage`` of the config's test pipeline; None where there is none.

    Raises:
        KeysegError: there is no test pipeline, or it encrypts more than once.
    """
    steps = [dict(step) for step in pipeline_of(cfg) if type_of(step) in ENCRYPTING]
    if len(steps) > 1:
        raise KeysegError(
            'the test pipeline of this config encrypts its images more than once; this audit is for one encryption: '
            'audit a config that has the outer one only'
        )
    return steps[0] if steps else None


def _of_config(cfg: Config, key_id: str) -> Stamp | None:
    step = encryption_step(cfg)
    if step is None:
        return None
    method, salt = step.get('method', 'SHF'), step.get('salt')
    if method == PATCH and (step.get('block') is None or salt is None):
        return None  # the step waits for a checkpoint to tell it
    block = step.get('block') or 8
    check_method(method, block)
    seed = b'' if salt is None else parse_salt(salt)
    if method != PATCH:
        return Stamp(key_id, bytes(SALT_BYTES), (ImageEntry(method, block, seed.hex()),))
    permute, negate = step.get('permute', 'all'), step.get('negate', True)
    check_steps(permute, negate)
    return bare_patch_stamp(block, permute, negate, key_id, seed)


def bare_patch_stamp(patch: int, permute: str, negate: bool, key_id: str, salt: bytes) -> Stamp:
    """What says how images are encrypted for a patch embedding, with nothing of the model."""
    entry = EmbeddingEntry('weight', '', 0, patch, permute, negate, 'rgb', (0.0,) * 3, (1.0,) * 3)
    return Stamp(key_id, salt or bytes(SALT_BYTES), (entry,))


def _of_checkpoint(path: Path, trust: Trust) -> Stamp | None:
    return trust(read_checkpoint(path)['state_dict'])


def _words(stamp: Stamp) -> str:
    return '; '.join([*map(str, stamp.images), f'key id {stamp.key_id}'])


def _nothing(checkpoint: Path | None) -> str:
    if checkpoint is not None:
        return (
            f'neither the config nor {checkpoint} encrypts images: give a config with keyseg_mm.EncryptImage in its '
            'test pipeline, or a checkpoint of `keyseg lock --scheme patches`'
        )
    return (
        "this config encrypts no images: put dict(type='keyseg_mm.EncryptImage', ...) into its test pipeline; or give "
        'CHECKPOINT, to audit that model, or with --images, a model that takes encrypted images'
    )
