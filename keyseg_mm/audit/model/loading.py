"""What an audit works on: config, checkpoints and photos, read and checked before anything long begins."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.config import Config, ConfigDict
from mmengine.logging import MMLogger
from mmengine.model import revert_sync_batchnorm
from torch import Tensor, nn

from keyseg_mm.audit.engine.attack import ModelSuite, Say, seed_everything
from keyseg_mm.audit.engine.datasets import ENCRYPTING, PhotoSet, nested_shares
from keyseg_mm.audit.model.attack import LabelledPhotos
from keyseg_mm.audit.model.forward import load_weights
from keyseg_mm.checkpoint.files import read_checkpoint
from keyseg_mm.entries import Entry, MapEntry, TensorEntry
from keyseg_mm.envelope import SEALED
from keyseg_mm.errors import KeysegError, PlainCheckpointError, StampError
from keyseg_mm.keys.identity import Key
from keyseg_mm.locking import unwrap
from keyseg_mm.mm.config import build_plain_model, rewritten, type_of
from keyseg_mm.mm.dryrun import trace_module
from keyseg_mm.model.passes import undisturbed
from keyseg_mm.model.points import Point
from keyseg_mm.model.sites import Site
from keyseg_mm.seal.sections import sealed_stamp, unseal_section
from keyseg_mm.stamp import Stamp, is_stamp, stamps_of

_STEP = 32  # sides are multiples of it, the stride of most models


@dataclass(frozen=True)
class Protected:
    """A protected checkpoint, taken apart."""

    own: Stamp  # as it is in the file
    prefix: str  # of the module that the stamp belongs to
    stamp: Stamp  # the same with the names of the whole model
    weights: dict[str, Tensor]  # the state_dict without the stamp
    sealed: dict[str, Any] | None = None  # the state_dict as it is in the file, where that is sealed


def read_protected(path: Path, device: torch.device, key: Key) -> Protected:
    """Read a protected checkpoint, and take its seal off.

    Raises:
        PlainCheckpointError: it carries no stamp, or nothing but a seal.
        StampError: it carries several.
        KeyMismatchError: it is sealed to others.
        IntegrityError: it was altered.
    """
    read = state = read_checkpoint(path)['state_dict']
    seal = sealed_stamp(state)
    if seal is not None:
        state = unseal_section(key, state)
    stamps = stamps_of(state)
    if seal is not None and not stamps:
        raise PlainCheckpointError(
            f'{path} is sealed, and has no maps in its weights: whoever opens it, or reads the memory of who runs it, '
            'has the plain model, and there is nothing to attack but the cipher. To audit maps: keyseg lock --config'
        )
    if not stamps:
        raise PlainCheckpointError(f'{path} is plain (it carries no stamp): train with a key, or lock it first')
    if len(stamps) > 1:
        raise StampError(f'{path} carries {len(stamps)} stamps; an audit takes models with one protection')
    prefix, stamp = next(iter(stamps.items()))
    noise = read if seal is not None and seal.seal is not None and seal.seal.mode == SEALED else None
    return Protected(stamp, prefix, whole_model_stamp(stamp, prefix), _tensors(state, device), noise)


def whole_model_stamp(stamp: Stamp, prefix: str) -> Stamp:
    """A stamp with its points, and what else names modules, renamed from a module's view to the whole model's."""
    if not prefix:
        return stamp
    return dataclasses.replace(stamp, entries=tuple(_renamed(entry, prefix) for entry in stamp.entries))


def _renamed(entry: Entry, prefix: str) -> Entry:
    if isinstance(entry, TensorEntry):
        return dataclasses.replace(entry, names=tuple(f'{prefix}.{name}' for name in entry.names))
    if not isinstance(entry, MapEntry):
        return entry
    point = Point.parse(entry.point)
    name = prefix if point.name == '.' else f'{prefix}.{point.name}'
    weights = tuple(f'{prefix}.{weight}' for weight in entry.weights)
    return dataclasses.replace(entry, point=str(dataclasses.replace(point, name=name)), weights=weights)


def read_public(path: Path, weights: Mapping[str, Tensor], device: torch.device | str = 'cpu') -> dict[str, Tensor]:
    """Read public plain weights, by the names of a model's own: files of backbones may have the backbone's.

    Raises:
        KeysegError: the file is protected, so no public one, or of another model.
    """
    state = unwrap(read_checkpoint(path)['state_dict'])
    if stamps_of(state):
        raise KeysegError(f'{path} is protected; --public takes the plain weights that anybody can have')
    public = _tensors(state, device)
    named = ({prefix + name: value for name, value in public.items()} for prefix in ('', 'backbone.'))
    found = max(({n: v for n, v in known.items() if n in weights} for known in named), key=len)
    if not any(found[name].shape == weights[name].shape for name in found):
        raise KeysegError(
            f'{path} has no weights in common with this model; --public takes those it was trained from, whole or the '
            'backbone alone'
        )
    return found


def _tensors(state: Mapping[str, Any], device: torch.device | str) -> dict[str, Tensor]:
    kept = {name: value for name, value in state.items() if isinstance(value, Tensor) and not is_stamp(name)}
    return {name: value.to(device) for name, value in kept.items()}


def architecture(cfg: Config, device: torch.device, seed: int) -> Callable[[], nn.Module]:
    """What makes the plain model of a config, with seeded initial weights, in eval mode.

    Initial weights are those of the layers' own rules. Files of pretrained weights that the config names are not
    loaded: what an attacker may have of those is a grant of its own (``--public``).
    """
    own = _without_pretrained(cfg)
    return functools.partial(_build, own, device, seed)


def _build(cfg: Config, device: torch.device, seed: int) -> nn.Module:
    logger = MMLogger.get_current_instance()
    muted, logger.disabled = logger.disabled, True  # init_weights tells of every single layer
    try:
        with undisturbed():  # an attack that draws numbers before and after must not see it
            seed_everything(seed)
            model: Any = build_plain_model(cfg)
            if hasattr(model, 'init_weights'):
                model.init_weights()
    finally:
        logger.disabled = muted
    plain: nn.Module = revert_sync_batchnorm(model)  # a synchronised one waits for other processes
    return plain.to(device).eval()


def _without_pretrained(cfg: Config) -> Config:
    """The model alone: whatever else a config says has no part in what is built, nor in whether a result holds."""

    def strip(part: ConfigDict) -> ConfigDict:
        if isinstance(part.get('pretrained'), str):
            part['pretrained'] = None
        init = part.get('init_cfg')
        if isinstance(init, str) or (isinstance(init, dict) and init.get('type') == 'Pretrained'):
            part['init_cfg'] = None
        return part

    return Config({'model': rewritten(cfg.model, strip), 'default_scope': cfg.get('default_scope', 'mmseg')})


def fitting_sites(build: Callable[[], nn.Module], found: Protected, config: Path) -> dict[str, Site]:
    """What a dry run of the plain model shows of the stamp's points; checks that config and checkpoint belong together.

    Raises:
        KeysegError: the weights do not fit the config's model, or a point of the stamp does not fire in it.
    """
    model = build()
    try:
        load_weights(model, found.weights)
    except KeysegError as error:
        raise KeysegError(f'the checkpoint is not one of {config}: {error}') from None
    sites = trace_module(model).sites
    lacking = [e.point for e in found.stamp.maps if Point.parse(e.point) not in sites]
    if lacking:
        points = ', '.join(lacking)
        raise KeysegError(f'points that do not fire in the model of {config}: {points}; is it the right one?')
    return {entry.point: sites[Point.parse(entry.point)] for entry in found.stamp.maps}


def num_classes_of(model: nn.Module) -> int:
    """Number of classes of a segmentor of the host.

    Raises:
        KeysegError: it does not say.
    """
    head = getattr(model, 'decode_head', None)
    if isinstance(head, nn.ModuleList):  # cascades: the last one answers
        head = head[-1]
    count = getattr(head, 'num_classes', None) or getattr(model, 'num_classes', None)
    if not isinstance(count, int):
        raise KeysegError(f'a {type(model).__name__} does not say how many classes it has: it is no segmentor')
    return count


class PhotoSource(PhotoSet):
    """One data set of a config, as photos of one common size, normalised as a model's data preprocessor does."""

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
