"""Training on an attacker's photos: one routine for controls and attacks, so that they differ in nothing but the start.

AdamW with a short warm-up and a cosine decay, random flips and crops, batches drawn with a fixed seed. The loss is the
model's own (auxiliary heads and all) where it is a segmentor of the host, else cross entropy on its scores.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from keyseg_mm.audit.engine.attack import Progress
from keyseg_mm.audit.model.case import Budget, Photos, logits
from keyseg_mm.errors import KeysegError

Trainable = Callable[[str, nn.Parameter], bool]
#: (images (B, 3, h, w), labels (B, h, w), model) to a scalar
Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]

_WARM_UP = 0.05  # share of the steps
_CLIP = 10.0  # largest norm of a gradient: a scrambled model's first ones are large


@dataclass(frozen=True)
class Course:
    """What became of a training.

    Attributes:
        steps: steps taken.
        exhausted: the seconds ended it before all the steps were taken.
        losses: of every step.
    """

    steps: int
    exhausted: bool
    losses: list[float]


def train(
    model: nn.Module,
    photos: Photos,
    steps: int,
    lr: float,
    trainable: Trainable = lambda name, parameter: True,
    progress: Progress = lambda share, words: None,
    seed: int = 0,
    budget: Budget | None = None,
    batch: int = 4,
    crop: float = 0.75,
    weight_decay: float = 0.01,
    loss: Loss | None = None,
) -> Course:
    """Train a model in place; it is in eval mode afterwards.

    Batch norms whose own parameters are all frozen keep their running statistics too.

    Args:
        model: any segmentor; guesses that are hooked to it stay in force, and are trained if they are its parameters.
        photos: labelled.
        steps: iterations of ``batch`` photos each.
        lr: peak learning rate.
        trainable: from a parameter's name and the parameter, whether it learns.
        progress: called after each step.
        seed: of batches, flips, crops and dropout.
        budget: its seconds end the training early; its steps bound ``steps``.
        batch: photos in each step; fewer where there are fewer.
        crop: side of the random crops, as a share of the photos' sides; rounded to 32 pixels, the strides of most
            models.
        weight_decay: of AdamW.
        loss: another loss than :func:`segmentation_loss`.

    Raises:
        KeysegError: no labels, or nothing to train.
    """
    if photos.labels is None or not len(photos):
        raise KeysegError('training needs labelled photos; this case has none')
    frozen = _freeze(model, trainable)
    device = photos.images.device
    try:
        with torch.random.fork_rng([device.index or 0] if device.type == 'cuda' else []), torch.enable_grad():
            torch.manual_seed(seed)  # dropout and the like
            _train_mode(model)
            batches = _batches(photos, batch, crop, torch.Generator().manual_seed(seed))
            budget = budget or Budget(steps, math.inf)
            return _descend(model, batches, min(steps, budget.steps), lr, weight_decay, budget, loss, progress)
    finally:
        model.eval()
        for parameter in frozen:
            parameter.requires_grad_(True)


def _descend(
    model: nn.Module,
    batches: Iterator[tuple[Tensor, Tensor]],
    steps: int,
    lr: float,
    weight_decay: float,
    budget: Budget,
    loss: Loss | None,
    progress: Progress,
) -> Course:
    learning = [p for p in model.parameters() if p.requires_grad]
    if not learning:
        raise KeysegError('nothing to train: no parameter was chosen')
    optimizer = torch.optim.AdamW(learning, lr=lr, weight_decay=weight_decay)
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))
    clock, losses = budget.clock(), []
    while clock.steps < steps and clock.tick():
        images, labels = next(batches)
        value = (loss or segmentation_loss)(model, images, labels)
        optimizer.zero_grad(set_to_none=True)
        value.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(learning, _CLIP)
        optimizer.step()
        rate.step()
        losses.append(float(value.detach()))
        progress(clock.steps / steps, f'loss {sum(losses[-10:]) / len(losses[-10:]):.2f}')
    return Course(clock.steps, clock.steps < steps, losses)


def segmentation_loss(model: nn.Module, images: Tensor, labels: Tensor, ignore_index: int = 255) -> Tensor:
    """The model's own loss, or cross entropy on its scores where it has none.

    Args:
        model: the model, in training mode.
        images: (B, 3, H, W), normalised.
        labels: (B, H, W).
        ignore_index: label of pixels that do not count.
    """
    samples = _samples(model, images, labels)
    if samples is not None:
        host: Any = model
        parts = host.loss(images, samples)
        total, _ = host.parse_losses(parts)
        return total  # type: ignore[no-any-return]
    if not (labels != ignore_index).any():
        return 0.0 * logits(model, images).sum()
    return F.cross_entropy(logits(model, images), labels, ignore_index=ignore_index)


def _samples(model: nn.Module, images: Tensor, labels: Tensor) -> list[Any] | None:
    """The host's data samples, if the model is one of the host's segmentors with a loss of its own."""
    if not all(callable(getattr(model, name, None)) for name in ('loss', 'parse_losses', 'predict')):
        return None
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    size = tuple(images.shape[2:])
    meta = {'ori_shape': size, 'img_shape': size, 'pad_shape': size, 'padding_size': [0, 0, 0, 0], 'flip': False}
    samples = []
    for label in labels:
        sample = SegDataSample(metainfo={**meta, 'scale_factor': (1.0, 1.0)})
        sample.gt_sem_seg = PixelData(data=label[None])
        sample.gt_edge_map = PixelData(data=edges(label)[None])
        samples.append(sample)
    return samples


def edges(label: Tensor) -> Tensor:
    """Where a label map changes, as int64 0 and 1; what boundary-aware heads are trained with."""
    edge = torch.zeros_like(label)
    edge[:, 1:] |= (label[:, 1:] != label[:, :-1]).to(label.dtype)
    edge[1:] |= (label[1:] != label[:-1]).to(label.dtype)
    return edge


def _batches(photos: Photos, batch: int, crop: float, draw: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches without end, with one random crop window and a flip for each photo."""
    assert photos.labels is not None
    height, width = photos.images.shape[2:]
    tall, wide = (_side(side, crop) for side in (height, width))
    count = min(batch, max(2, len(photos)))  # batch norms refuse a single value for each channel
    while True:
        images, labels = [], []
        for index in torch.randperm(max(len(photos), count), generator=draw)[:count].tolist():
            index %= len(photos)
            top = int(torch.randint(height - tall + 1, (), generator=draw))
            left = int(torch.randint(width - wide + 1, (), generator=draw))
            image = photos.images[index, :, top : top + tall, left : left + wide]
            label = photos.labels[index, top : top + tall, left : left + wide]
            if torch.rand((), generator=draw) < 0.5:
                image, label = image.flip(-1), label.flip(-1)
            images.append(image)
            labels.append(label)
        yield torch.stack(images), torch.stack(labels)


def _side(side: int, crop: float) -> int:
    return min(side, max(32, round(side * crop / 32) * 32))


def _rate(step: int, steps: int) -> float:
    """Learning rate as a share of its peak: a linear warm-up, then half a cosine down to a hundredth."""
    warm = max(1, round(steps * _WARM_UP))
    if step < warm:
        return (step + 1) / warm
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def _freeze(model: nn.Module, trainable: Trainable) -> list[nn.Parameter]:
    """Let only the chosen parameters learn; returns those that were switched off here."""
    frozen = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not trainable(name, parameter):
            parameter.requires_grad_(False)
            frozen.append(parameter)
    return frozen


def _train_mode(model: nn.Module) -> None:
    model.train()
    for module in model.modules():
        own = list(module.parameters(recurse=False))
        if (
            isinstance(module, nn.modules.batchnorm._BatchNorm)
            and own
            and not any(p.requires_grad for p in own)
            or isinstance(module, nn.SyncBatchNorm)
        ):
            module.eval()
