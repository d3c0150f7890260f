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

_STEP = 32  # sides are multiples of it, the stride of most models


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
        self._preprocess = getattr(model, 'data_preprocessor', None)

    @property
    def palette(self) -> tuple[tuple[int, ...], ...]:
        """RGB colours of the classes."""
        return tuple(tuple(map(int, colour)) for colour in self.dataset.metainfo.get('palette') or ())

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

    def picture(self, number: int) -> np.ndarray[Any, Any]:
        """A photo as people see it: RGB uint8 (H, W, 3); the host reads blue first."""
        image = self.dataset[number]['inputs'].flip(0)
        return image.clamp(0, 255).byte().permute(1, 2, 0).numpy()  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Album:
    """The photos of an audit of one config, all of one size."""

    train: PhotoSource
    test: PhotoSource
    numbers: list[int]  # of the held-out photos, in the test data
    held_out: LabelledPhotos  # no attacker has them
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
        numbers = nested_shares(len(test), (1.0,), seed, most)[1.0]
        held_out = test.load(numbers, device)
        train.size = test.size  # all photos of one size
        chosen = nested_shares(len(train), sorted(suite.shares), seed, suite.photos)
        largest = chosen[max(suite.shares)]
        say(f'reading {len(largest)} of {len(train)} training photos')
        photos = train.load(largest, device)
        shares = {share: photos.take(slice(0, len(index))) for share, index in chosen.items()}
        return cls(train, test, numbers, held_out, shares)


def _with_labels(pipeline: list[Any]) -> list[Any]:
    """A test pipeline that loads the labels too (some, for test sets without any, do not) and leaves images plain.

    Attackers have plain images; the referee encrypts those of the key's holder.
    """
    steps = [step for step in pipeline if type_of(step) not in ENCRYPTING]
    if not any(type_of(step) == 'LoadAnnotations' for step in steps):
        packs = [i for i, step in enumerate(steps) if type_of(step) == 'PackSegInputs']
        steps.insert(packs[0] if packs else len(steps), {'type': 'LoadAnnotations'})
    return steps
