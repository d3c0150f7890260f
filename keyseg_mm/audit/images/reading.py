"""The plain photos that an audit of images reads."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from mmengine.config import Config

from keyseg_mm.audit.engine.datasets import ENCRYPTING, PhotoSet, nested_shares, type_of
from keyseg_mm.audit.engine.suites import Say, Suite
from keyseg_mm.audit.images.scheme import Images
from keyseg_mm.errors import KeysegError
from keyseg_mm.maps.pixels import COLOURS

# Steps from the first of which on an image is no plain one any more, or no image; labels are of no interest here.
_ENDS = (*ENCRYPTING, 'PackSegInputs')
_SKIPPED = ('LoadAnnotations',)


def read_photos(cfg: Config, suite: Suite, block: int, seed: int, say: Say) -> tuple[Images, Images]:
    """Images to be attacked, and an attacker's photos, none of them among the others; all of one size, red first.

    Sides are multiples of the block, of two at least.

    Raises:
        KeysegError: there are none, or they cannot be read.
    """
    test, train = (PhotoSet(cfg, split, _until_encrypted, block, suite.longest, 2) for split in ('test', 'train'))
    say(f'reading {min(suite.scored or len(test), len(test))} images to attack')
    attacked = _load(test, suite.scored, seed, ())
    train.size = test.size
    say(f"reading {min(suite.photos or len(train), len(train))} photos of the attacker's")
    public = _load(train, suite.photos, seed, [name for _, name in attacked if name])
    if not public:
        raise KeysegError('all training photos are among those under attack; give the attacker others')
    return np.stack([image for image, _ in attacked]), np.stack([image for image, _ in public])


def _load(photos: PhotoSet, count: int | None, seed: int, but: Sequence[str]) -> list[tuple[Images, str]]:
    """Photos chosen by chance, with their files; none of some files."""
    order = nested_shares(len(photos), (1.0,), seed, None)[1.0]
    found = ((image, name) for image, name in photos.read(order, _image_of) if name not in but)
    return [(_sized(photos, image), name) for image, name in itertools.islice(found, count)]


def _sized(photos: PhotoSet, image: Images) -> Images:
    """Red first, scaled to the common size."""
    size = photos.fit(image.shape[:2])
    image = np.ascontiguousarray(image[..., ::-1])
    return image if image.shape[:2] == size else cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA)


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
