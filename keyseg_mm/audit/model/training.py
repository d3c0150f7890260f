"""Training on an attacker's photos: one routine for controls and attacks, so that they differ in nothing but the start.

AdamW with a short warm-up and a cosine decay, random flips and crops, batches drawn with a fixed seed. The loss is the
model's own (auxiliary heads and all) where it is a segmentor of the host, else cross entropy on its scores.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from keyseg_mm.audit.engine.attack import Budget, Clock, Progress
from keyseg_mm.audit.model.attack import IGNORED, LabelledPhotos
from keyseg_mm.audit.model.forward import logits
from keyseg_mm.mm.inputs import data_samples

#: (model, images (B, 3, h, w), labels (B, h, w)) to a scalar
Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]

_BATCH = 4  # photos in each step; fewer where there are fewer
_WARM_UP = 0.05  # share of the steps
_CLIP = 10.0  # largest norm of a gradient: a scrambled model's first ones are large


def cross_entropy(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy of the model's scores, over the labelled pixels; zero where there are none."""
    scores = logits(model, images)
    if not (labels != IGNORED).any():
        return 0.0 * scores.sum()
    return F.cross_entropy(scores, labels, ignore_index=IGNORED)


def segmentation_loss(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """The model's own loss, in training mode, or :func:`cross_entropy` where it has none; arguments as there."""
    if not all(callable(getattr(model, name, None)) for name in ('loss', 'parse_losses', 'predict')):
        return cross_entropy(model, images, labels)
    host: Any = model
    total, _ = host.parse_losses(host.loss(images, data_samples(labels)))
    return total  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Attributes:
        steps: of a few photos each.
        lr: peak learning rate.
        learns: from a parameter's name, whether it learns.
        loss: of a batch.
        weight_decay: of AdamW.
        crop: side of the random crops, as a share of the photos' sides; rounded to 32 pixels, the strides of most
            models.
    """

    steps: int
    lr: float
    learns: Callable[[str], bool] = lambda name: True
    loss: Loss = segmentation_loss
    weight_decay: float = 0.01
    crop: float = 0.75


@dataclass(frozen=True)
class Course:
    """What became of a training."""

    exhausted: bool  # the seconds ended it before all the steps were taken
    losses: list[float]  # of every step

    @property
    def last(self) -> float:
        """Mean loss of the last steps; infinite if no step was taken."""
        return float(np.mean(self.losses[-5:])) if self.losses else math.inf


def train(
    model: nn.Module,
    photos: LabelledPhotos,
    recipe: Recipe,
    clock: Clock | None = None,
    progress: Progress = lambda share, words: None,
    seed: int = 0,
) -> Course:
    """Train a model in place; it is in eval mode afterwards.

    Batch norms whose own parameters are all frozen keep their running statistics too.

    Args:
        model: any segmentor; guesses that are hooked to it stay in force, and are trained if they are its parameters.
        photos: labelled.
        recipe: how.
        clock: its seconds end the training early, and it counts the steps; none by default.
        progress: called after each step.
        seed: of batches, flips, crops and dropout.
    """
    device = photos.images.device
    with torch.random.fork_rng([device.index or 0] if device.type == 'cuda' else []), torch.enable_grad():
        torch.manual_seed(seed)  # dropout and the like
        _set_up(model, recipe.learns)
        batches = _batches(photos, recipe, torch.Generator().manual_seed(seed))
        course = _descend(model, batches, recipe, clock or Budget(recipe.steps, math.inf).clock(), progress)
    model.eval()
    return course


def _descend(
    model: nn.Module, batches: Iterator[tuple[Tensor, Tensor]], recipe: Recipe, clock: Clock, progress: Progress
) -> Course:
    learning = [p for p in model.parameters() if p.requires_grad]
    steps = min(recipe.steps, clock.budget.steps - clock.steps)
    optimizer = torch.optim.AdamW(learning, lr=recipe.lr, weight_decay=recipe.weight_decay)
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))
    losses: list[float] = []
    while len(losses) < steps and clock.tick():
        value = recipe.loss(model, *next(batches))
        optimizer.zero_grad(set_to_none=True)
        value.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(learning, _CLIP)
        optimizer.step()
        rate.step()
        losses.append(float(value.detach()))
        progress(len(losses) / steps, f'loss {np.mean(losses[-10:]):.2f}')
    return Course(len(losses) < steps, losses)


def _batches(photos: LabelledPhotos, recipe: Recipe, draw: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches without end, with one random crop window and a flip for each photo."""
    height, width = photos.images.shape[2:]
    tall, wide = (min(side, max(32, round(side * recipe.crop / 32) * 32)) for side in (height, width))
    count = min(_BATCH, max(2, len(photos)))  # batch norms refuse a single value for each channel
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


def _rate(step: int, steps: int) -> float:
    """Learning rate as a share of its peak: a linear warm-up, then half a cosine down to a hundredth."""
    warm = max(1, round(steps * _WARM_UP))
    if step < warm:
        return (step + 1) / warm
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def _set_up(model: nn.Module, learns: Callable[[str], bool]) -> None:
    """Freeze all parameters that are not to learn, and the statistics of batch norms that have no others."""
    for name, parameter in model.named_parameters():
        if not learns(name):
            parameter.requires_grad_(False)
    model.train()
    for module in model.modules():
        own = list(module.parameters(recurse=False))
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and own and not any(p.requires_grad for p in own):
            module.eval()
