"""The plain photos that an audit of images reads."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from mmengine.config import Config

from keyseg_mm.audit.engine.datasets import ENCRYPTING, PhotoSet, nested_shares, type_of
from keyseg_mm.audit.engine.suites import ImageSuite, Say
from keyseg_mm.audit.images.scheme import Images
from keyseg_mm.errors import KeysegError
from keyseg_mm.maps.pixels import COLOURS

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


def read_photos(cfg: Config, suite: ImageSuite, block: int, seed: int, say: Say) -> tuple[Images, Images]:
    """Images to be attacked, and an attacker's photos, of one size.

    Raises:
        KeysegError: there are none, or they cannot be read.
    """
    test, train = (PlainPhotos(cfg, split, block, suite.longest) for split in ('test', 'train'))
    say(f'reading {min(suite.scored or len(test), len(test))} images to attack')
    attacked, files = test.load(suite.scored, seed)
    train.size = test.size
    say(f"reading {min(suite.photos or len(train), len(train))} photos of the attacker's")
    return attacked, train.load(suite.photos, seed, files)[0]


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
