"""Photos for an audit of a model: normalised by its own data preprocessor, with their labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.config import Config
from torch import Tensor, nn

from keyseg_mm.audit.engine.datasets import ENCRYPTING, PhotoSet, nested_shares, type_of
from keyseg_mm.audit.engine.suites import ModelSuite, Say
from keyseg_mm.audit.model.attack import LabelledPhotos
from keyseg_mm.audit.model.input_cipher import Pixels
from keyseg_mm.errors import LockError

_STEP = 32  # sides are multiples of it, the stride of most models


@dataclass(frozen=True)
class Classes:
    """What the labels mean: names and RGB colours, by label."""

    names: tuple[str, ...]
    palette: tuple[tuple[int, ...], ...]


class PhotoSource(PhotoSet):
    """One data set of a config, as normalised photos of one common size.

    Args:
        cfg: the config.
        split: ``'train'`` or ``'test'``.
        model: a model of the config; its data preprocessor normalises.
        longest: as of :class:`PhotoSet`, with its errors.
    """

    def __init__(self, cfg: Config, split: str, model: nn.Module, longest: int | None = None) -> None:
        super().__init__(cfg, split, _with_labels, _STEP, longest)
        self._preprocess, self._pixels = getattr(model, 'data_preprocessor', None), _pixels_of(model)

    @property
    def classes(self) -> Classes:
        """Names and colours of the classes."""
        meta = self.dataset.metainfo
        palette = tuple(tuple(map(int, colour)) for colour in meta.get('palette') or ())
        return Classes(tuple(map(str, meta.get('classes') or ())), palette)

    def load(self, index: Sequence[int], device: torch.device) -> LabelledPhotos:
        """Photos by their numbers, all of the size of the first one ever loaded.

        Raises:
            KeysegError: one cannot be read.
        """
        images, labels = zip(*self.read(index, self._sized))
        return LabelledPhotos(torch.stack(images).to(device), torch.stack(labels).to(device))

    def _sized(self, sample: Any) -> tuple[Tensor, Tensor]:
        label = sample['data_samples'].gt_sem_seg.data
        label = label.reshape(label.shape[-2:]).long()
        image = sample['inputs']
        if self._preprocess is not None:
            batch = {'inputs': [image], 'data_samples': [sample['data_samples']]}
            image = self._preprocess(batch, training=False)['inputs'][0]
        image = image.detach().float().cpu()
        size = self.fit(image.shape[1:])
        if tuple(image.shape[1:]) != size:
            image = F.interpolate(image[None], size, mode='bilinear', align_corners=False, antialias=True)[0]
        if tuple(label.shape) != size:
            label = F.interpolate(label[None, None].float(), size, mode='nearest')[0, 0].long()
        return image, label

    def picture(self, image: Tensor) -> np.ndarray[Any, Any]:
        """A normalised photo as people see it: RGB uint8 (H, W, 3)."""
        if self._pixels is not None:
            shown = self._pixels.values(image.cpu()[None])[0].flip(0)  # the host reads blue first
        else:
            shown = image.cpu()
            if self._preprocess is None:
                shown = 255 * (shown - shown.min()) / (shown.max() - shown.min()).clamp_min(1e-6)
        return shown.clamp(0, 255).permute(1, 2, 0).numpy().astype(np.uint8)


@dataclass(frozen=True)
class Album:
    """The photos of an audit of one config, all of one size."""

    train: PhotoSource
    test: PhotoSource
    held_out: LabelledPhotos  # of the test data: no attacker has them
    shares: dict[float, LabelledPhotos]  # of the training data, by share; the smaller ones are part of the larger ones

    @classmethod
    def read(cls, cfg: Config, model: nn.Module, suite: ModelSuite, seed: int, device: torch.device, say: Say) -> Album:
        """Read what an audit needs of a config's data sets, by a model of it; the seed is of the choice.

        Raises:
            KeysegError: there are no photos, or they cannot be read.
        """
        train, test = (PhotoSource(cfg, split, model, suite.longest) for split in ('train', 'test'))
        most = min(suite.scored or len(test), len(test))
        say(f'reading {most} held-out photos')
        held_out = test.load(nested_shares(len(test), (1.0,), seed, most)[1.0], device)
        train.size = test.size  # all photos of one size
        chosen = nested_shares(len(train), sorted(suite.shares), seed, suite.photos)
        largest = chosen[max(suite.shares)]
        say(f'reading {len(largest)} of {len(train)} training photos')
        photos = train.load(largest, device)
        return cls(train, test, held_out, {share: photos.take(slice(0, len(index))) for share, index in chosen.items()})


def _pixels_of(model: nn.Module) -> Pixels | None:
    """How a model normalises; None where it has no data preprocessor, or one that does more than that."""
    try:
        return Pixels.of(model)
    except (AttributeError, LockError):
        return None


def _with_labels(pipeline: list[Any]) -> list[Any]:
    """A test pipeline that loads the labels too (some, for test sets without any, do not) and leaves images plain.

    Attackers have plain images; the referee encrypts those of the key's holder.
    """
    steps = [step for step in pipeline if type_of(step) not in ENCRYPTING]
    if not any(type_of(step) == 'LoadAnnotations' for step in steps):
        packs = [i for i, step in enumerate(steps) if type_of(step) == 'PackSegInputs']
        steps.insert(packs[0] if packs else len(steps), {'type': 'LoadAnnotations'})
    return steps
