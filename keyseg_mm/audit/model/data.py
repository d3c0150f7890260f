"""Photos for an audit: the data sets of a config, through its own test pipeline and data preprocessor."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.config import Config
from torch import Tensor, nn

from keyseg_mm.audit.engine.suites import Level, Say
from keyseg_mm.audit.model.case import Photos
from keyseg_mm.audit.model.input_cipher import Pixels
from keyseg_mm.errors import KeysegError, LockError

ENCRYPTING = ('EncryptImage',)  # steps of pipelines
_STEP = 32  # sides are multiples of it, the stride of most models


@dataclass(frozen=True)
class Classes:
    """What the labels mean.

    Attributes:
        names: of the classes, by label.
        palette: RGB colours, by label.
    """

    names: list[str]
    palette: list[list[int]]


def type_of(step: Any) -> str:
    """The name of the class of a pipeline's step, without its scope; configs give a name or the class itself."""
    kind = step.get('type') if isinstance(step, Mapping) else step
    return str(getattr(kind, '__name__', kind)).rpartition('.')[2]


def built(settings: Any, where: str) -> Any:
    """A data set of the host.

    Args:
        settings: of it.
        where: in the config, for messages.

    Raises:
        KeysegError: it cannot be built, or is empty.
    """
    from mmseg.registry import DATASETS

    try:
        dataset = DATASETS.build(settings)
    except Exception as error:  # the host raises whatever it likes for missing folders
        raise KeysegError(f'{where}: {type(error).__name__}: {error}; check data_root') from None
    if not len(dataset):
        raise KeysegError(f'{where}: no photos there; check data_root and data_prefix')
    return dataset


class PhotoSource:
    """One data set of a config, as normalised photos of one common size.

    Args:
        cfg: the config.
        split: ``'train'`` or ``'test'``. The test pipeline is used for both: attackers bring their own augmentation.
        model: a model of the config; its data preprocessor normalises.
        longest: photos whose longer side exceeds it are scaled down to it; None keeps their size.

    Raises:
        KeysegError: the config has no such data set, or it is empty or cannot be read.
    """

    def __init__(self, cfg: Config, split: str, model: nn.Module, longest: int | None = None) -> None:
        where = f'{split}_dataloader.dataset'
        try:
            settings = copy.deepcopy(cfg[f'{split}_dataloader']['dataset'])
            pipeline = _with_labels(innermost(cfg.test_dataloader.dataset)['pipeline'])
        except (KeyError, AttributeError, TypeError):
            raise KeysegError(
                f'this config has no {where}: the audit takes its photos from train_dataloader and test_dataloader'
            ) from None
        innermost(settings)['pipeline'] = pipeline
        self._dataset = built(settings, where)
        self._where, self._preprocess, self._longest = where, getattr(model, 'data_preprocessor', None), longest
        self._pixels = _pixels_of(model)
        self.size: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self._dataset)

    @property
    def classes(self) -> Classes:
        """Names and colours of the classes."""
        meta = self._dataset.metainfo
        names = [str(name) for name in meta.get('classes') or ()]
        palette = [list(map(int, colour)) for colour in meta.get('palette') or ()]
        return Classes(names, palette)

    def load(self, index: Sequence[int], device: torch.device, tick: Callable[[], object] = lambda: None) -> Photos:
        """Photos by their numbers, all of the size of the first one ever loaded.

        Args:
            index: numbers of photos.
            device: where they go.
            tick: called after each photo.

        Raises:
            KeysegError: one cannot be read.
        """
        images, labels = [], []
        for number in index:
            try:
                image, label = self._one(int(number))
            except KeysegError:
                raise
            except Exception as error:  # the host raises whatever it likes for a broken file
                raise KeysegError(f'{self._where}, photo {number}: {type(error).__name__}: {error}') from None
            images.append(image)
            labels.append(label)
            tick()
        return Photos(torch.stack(images).to(device), torch.stack(labels).to(device))

    def _one(self, number: int) -> tuple[Tensor, Tensor]:
        sample = self._dataset[number]
        label = sample['data_samples'].gt_sem_seg.data.reshape(sample['data_samples'].gt_sem_seg.data.shape[-2:]).long()
        image = sample['inputs']
        if self._preprocess is not None:
            batch = {'inputs': [image], 'data_samples': [sample['data_samples']]}
            image = self._preprocess(batch, training=False)['inputs'][0]
        image = image.detach().float().cpu()
        if self.size is None:
            self.size = _common_size(tuple(image.shape[1:]), self._longest)
        if tuple(image.shape[1:]) != self.size:
            image = F.interpolate(image[None], self.size, mode='bilinear', align_corners=False, antialias=True)[0]
        if tuple(label.shape) != self.size:
            label = F.interpolate(label[None, None].float(), self.size, mode='nearest')[0, 0].long()
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


def _pixels_of(model: nn.Module) -> Pixels | None:
    """How a model normalises; None where it has no data preprocessor, or one that does more than that."""
    try:
        return Pixels.of(model)
    except (AttributeError, LockError):
        return None


def nested_shares(total: int, shares: Sequence[float], seed: int, most: int | None) -> dict[float, list[int]]:
    """Numbers of photos for each share, the smaller ones contained in the larger ones.

    Args:
        total: photos in all.
        shares: each above 0, at most 1.
        seed: of the choice.
        most: no more than this many; None for no limit.
    """
    order = np.random.default_rng(seed).permutation(total).tolist()
    counts = {share: min(max(1, round(share * total)), most or total) for share in shares}
    return {share: order[:count] for share, count in counts.items()}


@dataclass(frozen=True)
class Album:
    """The photos of an audit of one config, all of one size.

    Attributes:
        train: where the attackers' photos come from.
        test: where the held-out ones come from.
        held_out: labelled photos that no attacker has.
        shares: labelled photos by the attacker's share of the training set, the smaller ones part of the larger ones.
    """

    train: PhotoSource
    test: PhotoSource
    held_out: Photos
    shares: dict[float, Photos]


def read_album(
    cfg: Config, model: nn.Module, level: Level, shares: Sequence[float], seed: int, device: torch.device, say: Say
) -> Album:
    """Read what an audit needs of a config's data sets.

    Args:
        cfg: the config.
        model: a model of it.
        level: how many photos, and how large.
        shares: of the training set.
        seed: of the choice.
        device: where the photos go.
        say: told what is going on.

    Raises:
        KeysegError: there are no photos, or they cannot be read.
    """
    train, test = (PhotoSource(cfg, split, model, level.longest) for split in ('train', 'test'))
    most = min(level.held_out or len(test), len(test))
    say(f'reading {most} held-out photos')
    held_out = test.load(nested_shares(len(test), (1.0,), seed, most)[1.0], device)
    train.size = test.size  # all photos of one size
    chosen = nested_shares(len(train), sorted(shares), seed, level.photos)
    largest = chosen[max(shares)]
    say(f'reading {len(largest)} of {len(train)} training photos')
    photos = train.load(largest, device)
    return Album(train, test, held_out, {share: photos.take(slice(0, len(index))) for share, index in chosen.items()})


def _common_size(size: Sequence[int], longest: int | None) -> tuple[int, int]:
    scale = min(1.0, longest / max(size)) if longest else 1.0
    height, width = (max(_STEP, round(side * scale / _STEP) * _STEP) for side in size)
    return height, width


def innermost(settings: Any) -> Any:
    """The data set in wrappers such as RepeatDataset; of several joined ones the first."""
    while settings.get('dataset') is not None or settings.get('datasets'):
        settings = settings['dataset'] if settings.get('dataset') is not None else settings['datasets'][0]
    return settings


def _with_labels(pipeline: Any) -> Any:
    """A test pipeline that loads the labels too (some, for test sets without any, do not) and leaves images plain.

    Attackers have plain images; the referee encrypts those of the key's holder himself.
    """
    steps = [copy.deepcopy(step) for step in pipeline if type_of(step) not in ENCRYPTING]
    if not any('LoadAnnotations' in str(step.get('type')) for step in steps):
        packs = [i for i, step in enumerate(steps) if 'PackSegInputs' in str(step.get('type'))]
        steps.insert(packs[0] if packs else len(steps), {'type': 'LoadAnnotations'})
    return steps
