"""Inversion of norm statistics: the key under which outputs are as the norms behind them remember them.

For a layer that reads a map, and has a batch norm behind it: mean and covariance of what it reads (over the patches of
its kernel) give the mean and variance of its outputs under any key, and the norm remembers what these were.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from keyseg_mm.audit.engine.attack import Progress
from keyseg_mm.audit.model.attack import Attack, Attempt, Case, Photos, carriers, register
from keyseg_mm.audit.model.attacks.points import AttackedPoint, Guesses, Matrix, array_of, points_of
from keyseg_mm.audit.model.forward import logits
from keyseg_mm.maps import ChannelMap

IMAGES, BATCH = 32, 8  # photos that are looked at, at most, and at once
POSITIONS = 500  # of a map and photo whose patches are looked at
RUNS = 8  # searches from random starts, at least; then they go on until the two best ends meet
MOST_RUNS = 200
#: How far the statistics of other photos are off, in standard deviations of the outputs and in log variances.
MEAN_NOISE, VARIANCE_NOISE = 0.04, 0.05
_Norm = nn.modules.batchnorm._BatchNorm


@register
class NormInversion(Attack):
    """Find the key under which a layer's outputs have the mean and variance that its batch norm remembers.

    Needs a few dozen images without labels. Goes through the points as the stamp has them, in forward order, with the
    earlier guesses in place. Two equations for each output are enough where a layer has more outputs than inputs. The
    order is found from random starts by exchanges of two channels (signs by flips), each the best there is, until none
    helps. Rotations, points without a norm behind, and those with too few equations are left as they are. The seconds
    of the budget are shared out evenly among the points.
    """

    name, title = 'norm-inversion', 'inversion of norm statistics'
    needs = frozenset({Photos})
    source = 'activation matching in Git Re-Basin, arXiv 2209.04836; batch norm statistics in Yin et al., CVPR 2020'
    cost = 'a forward pass and a search of seconds to minutes for each point; no labels'

    def run(self, case: Case, progress: Progress) -> Attempt:
        clock, points = case.budget.clock(), [p for p in points_of(case) if not p.turned]
        rng, guesses = np.random.default_rng(case.seed), Guesses()
        for at, point in enumerate(points):
            left = (case.budget.seconds - clock.seconds) / (len(points) - at)
            equations = equations_at(case, point, guesses) if left > 0 else []
            if 2 * sum(len(e.wanted) for e in equations) >= point.entry.channels:
                guesses[point.entry.point] = invert(point, equations, left, rng)
            progress((at + 1) / len(points), point.entry.point)
        return Attempt(guesses, exhausted=clock.out_of_time)


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
        """Suppose the map is a matrix M, ``T(x) = M @ x``; the misfit, in units of the usual noise."""
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


def equations_at(case: Case, point: AttackedPoint, guesses: Guesses) -> list[NormEquations]:
    """Those of the layers that read a point's map, all of it and nothing else, and have a batch norm behind them.

    The model runs on the photos with the guesses so far. Batch norms run on the statistics of the batch: photos differ
    from those of the training, and an earlier guess may be wrong; a map has the right mean and scale all the same.
    """
    model, photos = case.model(guesses), case[Photos].images[:IMAGES]
    carried = {} if point.entry.along != 1 else {n: case.weights[n] for n in carriers(point.entry) if n in case.weights}
    whole = [name for name, weight in carried.items() if weight.shape[1] == point.entry.channels]
    carrying = [name.removesuffix('.weight') for name in whole if name.endswith('.weight')]
    names = [name for name in carrying if isinstance(model.get_submodule(name), (nn.Conv2d, nn.Linear))]
    patches: dict[str, list[Tensor]] = {name: [] for name in names}
    draw = torch.Generator().manual_seed(case.seed)
    left: list[tuple[str, Tensor]] = []  # what came out of the layers
    norms: dict[str, nn.Module] = {}

    def leaving(name: str) -> Any:
        def note(layer: nn.Module, args: Any, output: Tensor) -> None:
            patches[name].append(_patches(layer, args[0], draw))
            left.append((name, output))

        return note

    def entering(norm: nn.Module, args: Any) -> None:
        norms.update((name, norm) for name, output in left if output is args[0])

    for name in names:
        model.get_submodule(name).register_forward_hook(leaving(name))
    for norm in (m for m in model.modules() if isinstance(m, _Norm) and m.running_mean is not None):
        # a pooled map of one photo has a single value for each channel, and synchronised norms wait for others
        norm.train(len(photos) > 1 and not isinstance(norm, nn.SyncBatchNorm))
        norm.momentum = 0.0  # keeps the stored statistics
        norm.register_forward_pre_hook(entering)
    with torch.no_grad():
        for images in torch.split(photos, BATCH) if names else ():
            left.clear()
            logits(model, images)
    return [_equations(case, name, norm, torch.cat(patches[name], 1)) for name, norm in norms.items()]


def _patches(layer: Any, x: Tensor, draw: torch.Generator) -> Tensor:
    """Some of the patches (c K, n) of a map that a layer reads, K positions of its kernel."""
    if isinstance(layer, nn.Linear):
        found = x.movedim(-1, 0).flatten(1)
    else:
        how = {k: getattr(layer, k) for k in ('kernel_size', 'dilation', 'stride')}
        padding = layer.padding if isinstance(layer.padding, tuple) else (0, 0)
        found = F.unfold(x, padding=padding, **how).movedim(1, 0).flatten(1)
    some = torch.randperm(found.shape[1], generator=draw)[: POSITIONS * len(x)]
    return found[:, some.to(x.device)].cpu().double()


def _equations(case: Case, name: str, norm: nn.Module, patches: Tensor) -> NormEquations:
    """Those of a layer's protected weight, by what the norm behind it remembers."""
    weight, bias = case.weights[f'{name}.weight'], case.weights.get(f'{name}.bias')
    c = weight.shape[1]
    columns = weight.detach().cpu().double().movedim(1, 0).reshape(c, len(weight), -1)
    covariance = torch.cov(patches, correction=0).reshape(c, columns.shape[2], c, -1)
    wanted, variance = (getattr(norm, f'running_{what}').cpu().double() for what in ('mean', 'var'))
    wanted = wanted if bias is None else wanted - bias.detach().cpu().double()
    return NormEquations(columns, patches.mean(1).reshape(c, -1), covariance, wanted, variance.clamp_min(1e-8))


def invert(
    point: AttackedPoint, equations: list[NormEquations], seconds: float, rng: np.random.Generator
) -> ChannelMap:
    """The map under which the statistics of a point's readers meet those of the norms behind them, found in time."""
    until, ends = time.monotonic() + seconds, list[tuple[float, Matrix]]()
    while len(ends) < MOST_RUNS and (not ends or time.monotonic() < until):
        matrix = _exchanged(point, equations, until, rng)
        ends.append((float(sum(e.start(torch.from_numpy(matrix)) for e in equations)), matrix))
        ends.sort(key=lambda end: end[0])
        # of chance two searches never meet
        if len(ends) >= RUNS and (ends[0][1] * ends[1][1]).sum() > 0.9 * point.entry.channels:
            break
    return point.round(ends[0][1])


def _exchanged(point: AttackedPoint, equations: list[NormEquations], until: float, rng: np.random.Generator) -> Matrix:
    """From a random map to one that no exchange of two channels, their signs kept or not, makes fit better."""
    matrix = torch.from_numpy(array_of(point.random(rng)))
    choices = [(1.0, 1.0), (-1.0, -1.0), (1.0, -1.0), (-1.0, 1.0)][: 4 if point.signed else 1]
    for e in equations:
        e.start(matrix)
    moved = True
    while moved and time.monotonic() < until:
        moved = False
        for i in rng.permutation(point.entry.channels).tolist():
            offers = torch.stack([torch.stack([e.offers(i, s) for e in equations]).sum(0) for s in choices])
            best = int(offers.nan_to_num(torch.inf).argmin())
            signs, j = choices[best // point.entry.channels], best % point.entry.channels
            if offers[best // point.entry.channels, j] > -1e-9:
                continue
            old, moved = matrix.clone(), True
            matrix[:, j] = signs[1] * old[:, i]
            matrix[:, i] = signs[0] * old[:, j]
            for e in equations:
                e.exchange(i, j, signs)
    return np.asarray(matrix.numpy())
