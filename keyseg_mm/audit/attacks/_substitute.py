"""Learning stand-ins for the key on labelled photos: what the substitute-key attacks share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from keyseg_mm.audit.attack import Progress
from keyseg_mm.audit.attacks._learn import BATCH, Fitness, StandIn, cross_entropy, freeze, place, split
from keyseg_mm.audit.attacks._spots import Spot, local_seed
from keyseg_mm.audit.case import Case, Clock, MatrixMap, Photos
from keyseg_mm.maps.base import ChannelMap

CLIP = 5.0  # largest norm of a gradient: scrambled models give large ones


def learn(
    case: Case,
    stand_ins: Sequence[StandIn],
    learning: Sequence[StandIn],
    photos: Photos,
    steps: int,
    lr: float,
    clock: Clock,
    progress: Progress,
    loss: Callable[[Photos], Tensor] | None = None,
) -> list[float]:
    """Adam on some of the stand-ins, all else frozen; the others run as they are.

    Args:
        case: the case.
        stand_ins: all that run.
        learning: those of them that learn.
        photos: labelled.
        steps: at most; the clock may end it earlier.
        lr: peak learning rate; it decays to nothing along a cosine.
        clock: of the attack.
        progress: called at every step.
        loss: another loss of a batch than the cross entropy.

    Returns:
        The losses.
    """
    model, losses = freeze(case.model()), []
    place(case, model, list(stand_ins))
    for stand_in in learning:
        stand_in.to(photos.images.device).train()
    adam = torch.optim.Adam([p for s in learning for p in s.parameters()], lr=lr)
    rng = np.random.default_rng([case.seed, clock.steps])
    order: list[int] = []
    with local_seed(case.seed), torch.enable_grad():
        for step in range(steps):
            if not clock.tick():
                break
            for group in adam.param_groups:
                group['lr'] = lr * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))
            for stand_in in learning:
                stand_in.anneal(step / steps)
            if len(order) < min(BATCH, len(photos)):
                order += rng.permutation(len(photos)).tolist()
            batch, order = photos.take(order[:BATCH]), order[BATCH:]
            value = loss(batch) if loss else cross_entropy(case, model, batch)
            adam.zero_grad()
            value.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_([p for s in learning for p in s.parameters()], CLIP)
            adam.step()
            losses.append(float(value.detach()))
            progress((step + 1) / steps, f'loss {np.mean(losses[-10:]):.2f}')
    return losses


def choose(
    case: Case, spots: list[Spot], stand_ins: Sequence[StandIn], held: Photos
) -> tuple[dict[str, ChannelMap], str]:
    """The learned maps as they are or rounded to the family, point by point, whichever does better on photos kept back.

    A rounded map is what the key is known to be; a free one may make up for what could not be found.
    """
    fitness = Fitness(case, held, spots)
    free: dict[str, ChannelMap] = {s.spot.text: MatrixMap(s.matrix().detach()) for s in stand_ins}
    rounded: dict[str, ChannelMap] = {s.spot.text: s.rounded() for s in stand_ins}
    scores = {'rounded': fitness(rounded), 'free': fitness(free)}
    best, kept = ('rounded', rounded) if scores['rounded'] <= scores['free'] * 1.02 else ('free', free)
    words = f'held-back cross entropy {scores["rounded"]:.2f} rounded, {scores["free"]:.2f} free: kept the {best} maps'
    return kept, words


def tenth(progress: Progress, at: int, share: float, words: str) -> None:
    """Report the share of a try that takes a tenth of the whole, after ``at`` others."""
    progress((at + share) / 10, words)


def halves(case: Case) -> tuple[Photos, Photos]:
    """The case's labelled photos, to learn from and to choose by."""
    assert case.labelled is not None
    return split(case.labelled, case.seed)
