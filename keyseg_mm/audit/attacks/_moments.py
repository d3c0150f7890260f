"""What unlabelled images and a protected file tell about a point: moments of the map, and statistics that should meet.

For every layer that reads the map: the mean and covariance of what it reads (over the patches of its kernel), and the
running mean and variance of the batch norm behind it, if there is one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from keyseg_mm.audit.attacks._spots import Spot, channel_dim, columns_of, hooked, layer_weight
from keyseg_mm.audit.case import Case
from keyseg_mm.maps.base import ChannelMap

Array = NDArray[np.float64]

BATCH = 8  # photos at once: batch norms are run on the statistics of the batch
POSITIONS = 1500  # of a map and photo whose patches are looked at


@dataclass
class Reading:
    """One layer that reads a point's map.

    Attributes:
        weight: the protected weight by input channel, (c, O, K), K positions of the kernel.
        mean: of the map's patches, (c, K).
        covariance: of the map's patches, (c, K, c, K).
        target_mean, target_variance: of the layer's output by the norm behind it, (O,), or None.
    """

    weight: Array
    mean: Array
    covariance: Array
    target_mean: Array | None
    target_variance: Array | None


class _Enough(Exception):
    """Ends a forward pass at the last layer of interest."""


class Moments:
    """Running sums of the patches that a layer reads.

    Args:
        layer: the reader.
        offset: of the map's channels in its input.
        channels: of the map.
    """

    def __init__(self, layer: Any, offset: int, channels: int, seed: int) -> None:
        self.layer, self.offset, self.channels = layer, offset, channels
        self.count, self.first, self.second = 0, torch.zeros(1), torch.zeros(1)
        self.draw = torch.Generator().manual_seed(seed)

    def add(self, x: Tensor) -> None:
        """Take in a batch of the layer's inputs."""
        part = x.detach().narrow(channel_dim(self.layer), self.offset, self.channels)
        if isinstance(self.layer, nn.Linear):
            patches = part.reshape(-1, self.channels).T
        else:
            how = {k: getattr(self.layer, k) for k in ('kernel_size', 'dilation', 'stride')}
            padding = self.layer.padding if isinstance(self.layer.padding, tuple) else (0, 0)
            patches = F.unfold(part, padding=padding, **how).movedim(1, 0).flatten(1)
        limit = POSITIONS * len(x)
        if patches.shape[1] > limit:
            patches = patches[:, torch.randperm(patches.shape[1], generator=self.draw)[:limit].to(patches.device)]
        patches = patches.cpu().double()
        self.count += patches.shape[1]
        self.first = self.first + patches.sum(1)
        self.second = self.second + patches @ patches.T

    def result(self) -> tuple[Array, Array]:
        """Mean (c, K) and covariance (c, K, c, K)."""
        mean = self.first / self.count
        covariance = self.second / self.count - torch.outer(mean, mean)
        c, k = self.channels, len(mean) // self.channels
        return mean.reshape(c, k).numpy(), covariance.reshape(c, k, c, k).numpy()


def norms_behind(case: Case, model: nn.Module, images: Tensor) -> dict[str, str]:
    """By name of a layer, the name of the batch norm with running statistics that takes its output as it is."""
    made: dict[int, tuple[str, Tensor]] = {}
    found: dict[str, str] = {}

    def out(name: str) -> Any:
        def hook(layer: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                made[id(output)] = name, output  # kept alive, so that its id is not given away

        return hook

    def into(name: str) -> Any:
        def hook(layer: nn.Module, args: Any) -> None:
            if id(args[0]) in made:
                found[made[id(args[0])][0]] = name

        return hook

    handles = []
    for name, module in model.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            handles.append(module.register_forward_hook(out(name)))
        elif isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            handles.append(module.register_forward_pre_hook(into(name)))
    with hooked(handles), torch.no_grad():
        case.logits(model, images)
    return found


def on_batch_statistics(model: nn.Module) -> None:
    """Let batch norms use the batch's own statistics and keep the stored ones.

    The attacker's photos differ from the training's augmented ones, and an earlier point may be wrong; normalised by
    the batch, a map has the right mean and scale in every channel all the same.
    """
    for module in model.modules():
        # a synchronised one would wait for other processes
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and not isinstance(module, nn.SyncBatchNorm):
            module.train()
            module.momentum = 0.0


def read(
    case: Case, spot: Spot, guesses: Mapping[str, ChannelMap], readers: list[tuple[str, int]], norms: Mapping[str, str]
) -> list[Reading]:
    """Run the model on the unlabelled photos, with the guesses so far, as far as the readers of a spot.

    Args:
        case: with unlabelled photos.
        spot: where; the map is taken as it comes, without a guess.
        guesses: at earlier points.
        readers: layers that read the map, with offsets.
        norms: from :func:`norms_behind`.
    """
    assert case.unlabelled is not None
    model = case.model({text: guess for text, guess in guesses.items() if text != spot.text})
    if len(case.unlabelled) > 1:  # a pooled map of one photo has a single value for each channel
        on_batch_statistics(model)
    moments = {name: Moments(model.get_submodule(name), offset, spot.channels, case.seed) for name, offset in readers}
    waiting: set[str] = set()

    def note(name: str) -> Any:
        def hook(layer: nn.Module, args: Any) -> None:
            moments[name].add(args[0])
            waiting.discard(name)
            if not waiting:
                raise _Enough

        return hook

    # behind the guess of this very spot there is none, so hooks see the map as it comes
    with hooked([m.layer.register_forward_pre_hook(note(name)) for name, m in moments.items()]), torch.no_grad():
        for at in range(0, len(case.unlabelled), BATCH):
            images = case.unlabelled.images[at : at + BATCH]
            if len(images) < 2 and at:
                continue
            waiting |= set(moments)
            with contextlib.suppress(_Enough):
                case.logits(model, images)
    return [_reading(case, spot, name, m, norms.get(name)) for name, m in moments.items() if m.count]


def _reading(case: Case, spot: Spot, name: str, moments: Moments, norm: str | None) -> Reading:
    weight = layer_weight(case.weights, name)
    assert weight is not None
    columns = columns_of(weight, moments.offset, spot.channels).reshape(spot.channels, len(weight), -1)
    mean, covariance = moments.result()
    # a reader of several maps at once gives no equation for one of them
    if norm is None or weight.shape[1] != spot.channels:
        return Reading(columns, mean, covariance, None, None)
    bias = case.weights.get(f'{name}.bias')
    target = case.weights[f'{norm}.running_mean'].detach().cpu().double()
    target = target if bias is None else target - bias.detach().cpu().double()
    variance = case.weights[f'{norm}.running_var'].detach().cpu().double().clamp_min(1e-8)
    return Reading(columns, mean, covariance, target.numpy(), variance.numpy())
