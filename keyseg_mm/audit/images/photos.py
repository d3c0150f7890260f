"""The plain photos of an audit of images, and how a config encrypts them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from mmengine.config import Config
from mmengine.registry import init_default_scope

from keyseg_mm.audit.engine.suites import Say
from keyseg_mm.audit.images.scheme import COLOURS, Images
from keyseg_mm.audit.images.suites import Depth
from keyseg_mm.audit.model.data import ENCRYPTING, built, innermost, nested_shares, type_of
from keyseg_mm.errors import KeysegError

# Steps from the first of which on an image is no plain one any more, or no image; labels are of no interest here.
_ENDS = (*ENCRYPTING, 'PackSegInputs')
_SKIPPED = ('LoadAnnotations',)


def encryption_step(cfg: Config) -> dict[str, Any] | None:
    """The one ``EncryptImage`` of the config's test pipeline; None where there is none.

    Raises:
        KeysegError: there is no test pipeline, or it encrypts more than once.
    """
    steps = [dict(step) for step in _test_pipeline(cfg) if type_of(step) in ENCRYPTING]
    if len(steps) > 1:
        raise KeysegError(
            'the test pipeline of this config encrypts its images more than once; this audit is for one encryption: '
            'audit a config that has the outer one only'
        )
    return steps[0] if steps else None


class PlainPhotos:
    """One data set of a config, as plain photos of one common size, red first.

    Args:
        cfg: the config.
        split: ``'train'`` or ``'test'``; the test pipeline is used for both.
        block: sides become multiples of it.
        longest: photos whose longer side exceeds it are scaled down to it; None keeps their size.

    Raises:
        KeysegError: the config has no such data set, or it is empty or cannot be read.
    """

    def __init__(self, cfg: Config, split: str, block: int, longest: int | None) -> None:
        self._where, self._block, self._longest = f'{split}_dataloader.dataset', block, longest
        init_default_scope(cfg.get('default_scope', 'mmseg'))
        try:
            settings = copy.deepcopy(cfg[f'{split}_dataloader']['dataset'])
            innermost(settings)['pipeline'] = _until_encrypted(_test_pipeline(cfg))
        except (KeyError, AttributeError, TypeError):
            raise KeysegError(
                f"this config has no {self._where}: images under attack come from the config's test data, and the "
                "attacker's photos from its training data"
            ) from None
        self._dataset = built(settings, self._where)
        self.size: tuple[int, int] | None = None
        self.full_size: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self._dataset)

    def load(self, count: int | None, seed: int, but: frozenset[str] = frozenset()) -> tuple[Images, frozenset[str]]:
        """Photos chosen by chance, all of the size of the first one ever loaded, and their files.

        Args:
            count: how many, at most; None for all.
            seed: of the choice.
            but: files to leave out.

        Raises:
            KeysegError: one cannot be read, or none is left.
        """
        most = min(count or len(self), len(self))
        images: list[Any] = []
        files: set[str] = set()
        for number in nested_shares(len(self), (1.0,), seed, None)[1.0]:
            if len(images) == most:
                break
            try:
                sample = self._dataset[int(number)]
                image, name = sample['img'], str(sample.get('img_path', ''))
            except Exception as error:  # the host raises whatever it likes for a broken file
                raise KeysegError(f'{self._where}, photo {number}: {type(error).__name__}: {error}') from None
            if name not in but or not name:
                images.append(self._sized(image, number))
                files.add(name)
        if not images:
            raise KeysegError(f'{self._where}: all its photos are among those under attack; give the attacker others')
        return np.stack(images), frozenset(files)

    def _sized(self, image: Any, number: int) -> Any:
        """Red first, bytes, scaled to the common size of whole blocks."""
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.shape[2:] != (COLOURS,):
            raise KeysegError(f'{self._where}, photo {number}: no colour image of bytes where it is to be encrypted')
        if self.size is None:
            self.full_size = (image.shape[0], image.shape[1])
            self.size = common_size(self.full_size, self._block, self._longest)
        image = np.ascontiguousarray(image[..., ::-1])
        if image.shape[:2] == self.size:
            return image
        return cv2.resize(image, self.size[::-1], interpolation=cv2.INTER_AREA)


def read_photos(
    cfg: Config, depth: Depth, block: int, seed: int, say: Say
) -> tuple[Images, Images, tuple[int, int] | None]:
    """Images to be attacked, an attacker's photos, and the former's size before they were scaled.

    Raises:
        KeysegError: there are none, or they cannot be read.
    """
    test = PlainPhotos(cfg, 'test', block, depth.longest)
    say(f'reading {min(depth.images or len(test), len(test))} images to attack')
    attacked, files = test.load(depth.images, seed)
    train = PlainPhotos(cfg, 'train', block, depth.longest)
    train.size = test.size
    say(f"reading {min(depth.photos or len(train), len(train))} photos of the attacker's")
    public, _ = train.load(depth.photos, seed, files)
    return attacked, public, test.full_size


def common_size(size: Sequence[int], block: int, longest: int | None) -> tuple[int, int]:
    """Height and width in whole blocks, at least two each, no longer than ``longest`` where two blocks fit in it."""
    scale = min(1.0, longest / max(size)) if longest else 1.0
    high, wide = (max(2, round(side * scale / block)) * block for side in size)
    return high, wide


def _test_pipeline(cfg: Config) -> list[Any]:
    try:
        return list(innermost(cfg.test_dataloader.dataset)['pipeline'])
    except (KeyError, AttributeError, TypeError):
        raise KeysegError(
            'this config has no test_dataloader.dataset with a pipeline: nothing says how it encrypts'
        ) from None


def _until_encrypted(pipeline: Sequence[Any]) -> list[Any]:
    found = []
    for step in pipeline:
        if type_of(step) in _ENDS:
            break
        if type_of(step) not in _SKIPPED:
            found.append(copy.deepcopy(step))
    return found
