"""Which layers read the map at a point, found by running the model with noise.

Noise is added to half of the channels of a map. A layer whose input changes in exactly that half, shifted by some
offset, reads the map as it is, whatever activations, norms, depthwise convolutions, resizings and concatenations lie
between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from keyseg_mm.audit.model.attack import Case, Photos
from keyseg_mm.audit.model.attacks.points import AttackedPoint
from keyseg_mm.audit.model.forward import GuessHook, logits
from keyseg_mm.model.points import Point

Columns = NDArray[np.float64]  # (channels, everything else) of weights, by input channel
Links = list[tuple[str, int]]  # names of layers, with the offset of the map's channels in what they read


@contextmanager
def hooked(handles: Iterable[Any]) -> Iterator[None]:
    """Take hooks off again."""
    on = list(handles)
    try:
        yield
    finally:
        for handle in on:
            handle.remove()


def place(case: Case, model: nn.Module, point: AttackedPoint, guess: Callable[[Tensor, int], Tensor]) -> Any:
    """Apply a guess, or anything else from (map, channel dimension) to a map, at a point; returns its hook's handle."""
    return GuessHook(Point.parse(point.text), guess, case.sites.get(point.text)).attach(model)


def channel_dim(layer: nn.Module) -> int:
    """Channel dimension of what enters a Conv2d or Linear."""
    return -1 if isinstance(layer, nn.Linear) else 1


def readers_of(case: Case, point: AttackedPoint) -> Links:
    """The layers that read a point's map: the one of an ``in:`` point, and what probing finds of an ``out:`` point."""
    where = Point.parse(point.text)
    if where.side == 'in':
        return [(where.name, 0)]
    rng, model = np.random.default_rng(case.seed), case.model()
    half = torch.zeros(point.channels)
    half[torch.from_numpy(rng.permutation(point.channels)[: (point.channels + 1) // 2])] = 1
    before = _inputs(case, model)
    with hooked([place(case, model, point, lambda x, dim: _shaken(x, half, dim, case.seed))]):
        after = _inputs(case, model)
    same = {name: x for name, x in before.items() if name in after and after[name].shape == x.shape}
    return [(name, offset) for name, x in same.items() for offset in _offsets(x, after[name], half)]


def facing_columns(case: Case, point: AttackedPoint, other: Mapping[str, Tensor]) -> tuple[Columns, Columns] | None:
    """What reads a map, by its channels: in the protected weights and in other ones, all readers side by side.

    Args:
        case: the case.
        point: where.
        other: weights of the same architecture. Readers that they lack or have in another shape are left out.

    Returns:
        None where no reader is left.
    """
    found = []
    for name, offset in readers_of(case, point):
        pair = [weights.get(f'{name}.weight') for weights in (case.weights, other)]
        if pair[0] is not None and pair[1] is not None and pair[0].shape == pair[1].shape:
            found.append([columns_of(weight, offset, point.channels) for weight in pair if weight is not None])
    if not found:
        return None
    ours, theirs = (np.concatenate(side, 1) for side in zip(*found))
    return ours, theirs


def columns_of(weight: Tensor, offset: int, channels: int) -> Columns:
    """A layer's weight by input channel, the channels of one map."""
    part = weight.detach().cpu().double().movedim(1, 0)[offset : offset + channels]
    return np.asarray(part.reshape(channels, -1).numpy(), dtype=np.float64)


def _picture(case: Case) -> Tensor:
    """An image to run the model on: one of the case's own where it grants any, else noise."""
    if Photos in case:
        return case[Photos].images[:1]
    noise = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(case.seed))
    return noise.to(next(iter(case.weights.values())).device)


def _shaken(x: Tensor, half: Tensor, dim: int, seed: int) -> Tensor:
    """The map with noise of three times its own size on the channels of ``half``."""
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)).to(x) * (3 * x.std() + 1)
    return (x.movedim(dim, -1) + noise.movedim(dim, -1) * half.to(x)).movedim(-1, dim)


def _offsets(x: Tensor, y: Tensor, half: Tensor) -> list[int]:
    """Where two maps, channels last, differ in just the channels of ``half``, and nowhere else."""
    apart = (x - y).abs().flatten(0, -2).amax(0)
    changed = (apart > 1e-5 * (x.abs().max() + 1e-12)).cpu()
    ends = len(changed) - len(half)
    windows = (nn.functional.pad(half.bool(), (offset, ends - offset)) for offset in range(ends + 1))
    return [offset for offset, window in enumerate(windows) if bool((changed == window).all())]


@torch.no_grad()
def _inputs(case: Case, model: nn.Module) -> dict[str, Tensor]:
    """What enters every ungrouped Conv2d and Linear, channels last."""
    seen: dict[str, Tensor] = {}

    def note(name: str) -> Any:
        return lambda layer, args: seen.update({name: args[0].detach().movedim(channel_dim(layer), -1)})

    mixing = {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, (nn.Conv2d, nn.Linear)) and getattr(layer, 'groups', 1) == 1
    }
    with hooked(layer.register_forward_pre_hook(note(name)) for name, layer in mixing.items()):
        logits(model, _picture(case))
    return seen
