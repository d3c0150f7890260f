"""What unlabelled images tell about a point: the moments of the map, and the norm statistics that they should meet.

For a layer that reads the map, and has a batch norm behind it: mean and covariance of what it reads (over the patches
of its kernel) give the mean and variance of its outputs under any map, and the norm remembers what these were.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from keyseg_mm.audit.model.attack import Case, Photos
from keyseg_mm.audit.model.attacks.points import AttackedPoint, Guesses
from keyseg_mm.audit.model.attacks.probing import Links, channel_dim, columns_of, hooked, pictures
from keyseg_mm.audit.model.forward import logits

BATCH = 8  # photos at once: batch norms are run on the statistics of the batch
POSITIONS = 1500  # of a map and photo whose patches are looked at
#: How far the statistics of other photos are off, in standard deviations of the outputs and in log variances.
MEAN_NOISE, VARIANCE_NOISE = 0.04, 0.05


class NormEquations:
    """One layer's equations, two for each output, with the columns of its weight in some order.

    Args:
        weight: the protected weight by input channel, (c, O, K), K positions of the kernel.
        mean: of the map's patches, (c, K).
        covariance: of the map's patches, (c, K, c, K).
        wanted, variance: of the layer's outputs by the norm behind it, (O,).
    """

    def __init__(self, weight: Tensor, mean: Tensor, covariance: Tensor, wanted: Tensor, variance: Tensor) -> None:
        self.weight, self.mean, self.covariance = weight, mean, covariance
        self.wanted, self.variance = wanted, variance
        self.blocks = covariance.diagonal(dim1=0, dim2=2).permute(2, 0, 1)

    def start(self, matrix: Tensor) -> Tensor:
        """Suppose the map is a matrix M, ``T(x) = M @ x``; the misfit, with gradients, in units of the usual noise."""
        self.u = torch.einsum('ij,iok->jok', matrix, self.weight)
        self.cu = torch.einsum('ikjl,jol->iok', self.covariance, self.u)
        self.level, self.spread = torch.einsum('jok,jk->o', self.u, self.mean), (self.cu * self.u).sum((0, 2))
        return self._misfit(self.level, self.spread)

    def _misfit(self, level: Tensor, spread: Tensor) -> Tensor:
        means = (level - self.wanted) ** 2 / (2 * self.variance * MEAN_NOISE**2)
        logs = (spread.clamp_min(1e-12) / self.variance).log() ** 2 / (2 * VARIANCE_NOISE**2)
        return (means + logs).mean(-1)

    def offers(self, i: int, signs: tuple[float, float]) -> Tensor:
        """By j, the change if channels i and j exchange columns, i's new one times signs[0], j's times signs[1]."""
        return self._misfit(*self._after(i, signs)) - self._misfit(self.level, self.spread)

    def exchange(self, i: int, j: int, signs: tuple[float, float]) -> None:
        """Do it."""
        level, spread = self._after(i, signs)
        self.level, self.spread, old = level[j], spread[j], self.u.clone()
        self.u[j] = signs[1] * old[i]
        self.u[i] = signs[0] * old[j]
        for at in {i, j}:
            self.cu += (self.u[at] - old[at]) @ self.covariance[at].transpose(0, 1)

    def _after(self, i: int, signs: tuple[float, float]) -> tuple[Tensor, Tensor]:
        """Level and spread, (c, O), after each exchange of i."""
        here, there = signs[0] * self.u - self.u[i], signs[1] * self.u[i] - self.u  # what channels i and j gain
        there[i] = 0.0
        here[i] = (signs[0] - 1) * self.u[i]
        level = self.level + (here * self.mean[i]).sum(-1) + (there * self.mean[:, None]).sum(-1)
        cross = 2 * (here * self.cu[i] + there * self.cu + here @ self.covariance[i].transpose(0, 1) * there)
        own = (here @ self.blocks[i]) * here + (there @ self.blocks) * there
        return level, self.spread + (cross + own).sum(-1)


def norms_behind(case: Case) -> dict[str, str]:
    """By name of a layer, the name of the batch norm with running statistics that takes its output as it is."""
    model, found = case.model(), dict[str, str]()
    made: dict[int, tuple[str, Tensor]] = {}  # by id of an output, which is kept alive so that its id is not given away

    def leaving(name: str) -> Any:
        return lambda layer, args, output: made.update({id(output): (name, output)})

    def entering(name: str) -> Any:
        def note(layer: nn.Module, args: Any) -> None:
            if id(args[0]) in made:
                found[made[id(args[0])][0]] = name

        return note

    handles = []
    for name, module in model.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            handles.append(module.register_forward_hook(leaving(name)))
        elif isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            handles.append(module.register_forward_pre_hook(entering(name)))
    with hooked(handles), torch.no_grad():
        logits(model, pictures(case))
    return found


class _Enough(Exception):
    """Ends a forward pass at the last layer of interest."""


class _Moments:
    """Running sums of the patches of a map that a layer reads, from an offset of its channels on."""

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
        some = torch.randperm(patches.shape[1], generator=self.draw)[: POSITIONS * len(x)]
        patches = patches[:, some.to(patches.device)].cpu().double()
        self.count += patches.shape[1]
        self.first = self.first + patches.sum(1)
        self.second = self.second + patches @ patches.T

    def result(self) -> tuple[Tensor, Tensor]:
        """Mean (c, K) and covariance (c, K, c, K)."""
        mean = self.first / self.count
        covariance, c = self.second / self.count - torch.outer(mean, mean), self.channels
        return mean.reshape(c, -1), covariance.reshape(c, len(mean) // c, c, -1)


def equations_at(
    case: Case, point: AttackedPoint, guesses: Guesses, readers: Links, norms: dict[str, str]
) -> list[NormEquations]:
    """Run the model on the unlabelled photos, with the guesses so far, as far as the readers of a point.

    Batch norms run on the statistics of the batch: the attacker's photos differ from the training's augmented ones, and
    an earlier guess may be wrong, and so a map has the right mean and scale in every channel all the same.

    Args:
        case: with unlabelled photos.
        point: where; the map is taken as it comes, without a guess.
        guesses: at earlier points.
        readers: layers that read the map. One that reads several maps at once gives no equations for one of them.
        norms: from :func:`norms_behind`; a reader without a norm gives no equations.
    """
    own = [name for name, _ in readers if name in norms and case.weights[f'{name}.weight'].shape[1] == point.channels]
    model, photos = case.model(guesses), case[Photos].images
    for module in model.modules():
        # a pooled map of one photo has a single value for each channel, and synchronised norms wait for other processes
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and not isinstance(module, nn.SyncBatchNorm):
            module.train(len(photos) > 1)
            module.momentum = 0.0  # keeps the stored statistics
    moments = {name: _Moments(model.get_submodule(name), 0, point.channels, case.seed) for name in own}
    waiting: set[str] = set()

    def note(name: str) -> Any:
        def watch(layer: nn.Module, args: Any) -> None:
            moments[name].add(args[0])
            waiting.discard(name)
            if not waiting:
                raise _Enough

        return watch

    with hooked([m.layer.register_forward_pre_hook(note(name)) for name, m in moments.items()]), torch.no_grad():
        for images in torch.split(photos, BATCH) if own else ():
            waiting |= set(own)
            with contextlib.suppress(_Enough):
                logits(model, images)
    return [_equations(case, name, norms[name], m) for name, m in moments.items() if m.count]


def _equations(case: Case, name: str, norm: str, moments: _Moments) -> NormEquations:
    weight, c = case.weights[f'{name}.weight'], moments.channels
    columns = torch.from_numpy(columns_of(weight, 0, c)).reshape(c, len(weight), -1)
    mean, variance = (case.weights[f'{norm}.running_{what}'].detach().cpu().double() for what in ('mean', 'var'))
    bias = case.weights.get(f'{name}.bias')
    wanted = mean if bias is None else mean - bias.detach().cpu().double()
    return NormEquations(columns, *moments.result(), wanted, variance.clamp_min(1e-8))
