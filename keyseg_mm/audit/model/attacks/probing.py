"""Which layers read the map at a point, and which write it, found by running the model with noise.

Noise is added to half of the channels of a map. A layer whose input changes in exactly that half, shifted by some
offset, reads the map as it is, whatever activations, norms, depthwise convolutions, resizings and concatenations lie
between. The layers that write a map are found likewise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from keyseg_mm.audit.model.attack import Case, Photos
from keyseg_mm.audit.model.attacks.points import AttackedPoint
from keyseg_mm.audit.model.forward import GuessHook, logits

Columns = NDArray[np.float64]  # (channels, everything else) of weights, by input channel
Links = list[tuple[str, int]]  # names of layers, with the offset of the map's channels in what they read or write


def pictures(case: Case, count: int = 1, side: int = 64) -> Tensor:
    """A few images to run a model on: the case's own where it grants any, else noise."""
    if Photos in case:
        return case[Photos].images[:count]
    noise = torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(case.seed))
    return noise.to(next(iter(case.weights.values())).device)


@contextmanager
def hooked(handles: list[Any]) -> Iterator[None]:
    """Take hooks off again."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def place(case: Case, model: nn.Module, point: AttackedPoint, guess: Callable[[Tensor, int], Tensor]) -> Any:
    """Apply a guess, or anything else from (map, channel dimension) to a map, at a point; returns its hook's handle."""
    return GuessHook(point.where, guess, case.sites.get(point.text)).attach(model)


def mixing_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Every ungrouped Conv2d and Linear by name: the layers that mix the channels of what they read."""
    kinds = (nn.Conv2d, nn.Linear)
    return {n: m for n, m in model.named_modules() if isinstance(m, kinds) and getattr(m, 'groups', 1) == 1}


def channel_dim(layer: nn.Module) -> int:
    """Channel dimension of what enters and leaves a mixing layer."""
    return -1 if isinstance(layer, nn.Linear) else 1


def firing_order(case: Case, points: list[AttackedPoint]) -> list[AttackedPoint]:
    """The points in the order in which a run meets them; those that never fire (training only) are left out."""
    met = list(_maps(case, case.model(), points))
    return sorted((p for p in points if p.text in met), key=lambda p: met.index(p.text))


def readers_of(case: Case, point: AttackedPoint) -> Links:
    """The layers that read a point's map: the one of an ``in:`` point, and what probing finds of an ``out:`` point."""
    if point.where.side == 'in':
        return [(point.where.name, 0)]
    model, half = case.model(), _half(case, point.channels)
    before = _inputs(case, model)
    with hooked([place(case, model, point, lambda x, dim: _shaken(x, half, dim, case.seed))]):
        after = _inputs(case, model)
    same = {name: x for name, x in before.items() if name in after and after[name].shape == x.shape}
    return [(name, offset) for name, x in same.items() for offset in _offsets(x, after[name], half)]


def writers_of(case: Case, points: list[AttackedPoint]) -> dict[str, Links]:
    """By point, the mixing layers whose outputs arrive there channel by channel."""
    model, found = case.model(), {point.text: Links() for point in points}
    before = _maps(case, model, points)
    for name, layer in mixing_layers(model).items():
        half = _half(case, len(layer.weight))  # type: ignore[arg-type]

        def shake(layer: nn.Module, args: Any, output: Tensor, half: Tensor = half) -> Tensor:
            return _shaken(output, half, channel_dim(layer), case.seed)

        with hooked([layer.register_forward_hook(shake)]):
            after = _maps(case, model, points)
        for text, x in before.items():
            found[text] += [(name, offset) for offset in _offsets(x, after[text], half)]
    return found


def facing_columns(
    case: Case, point: AttackedPoint, other: Mapping[str, Tensor], notes: list[str] | None = None
) -> tuple[Columns, Columns] | None:
    """What reads a map, by its channels: in the protected weights and in other ones, all readers side by side.

    Args:
        case: the case.
        point: where.
        other: weights of the same architecture. Readers that they lack or have in another shape are left out.
        notes: told what was left out.
    """
    ours, theirs = [], []
    for name, offset in readers_of(case, point):
        mine, others = case.weights.get(f'{name}.weight'), other.get(f'{name}.weight')
        if mine is not None and others is not None and mine.shape == others.shape:
            ours.append(columns_of(mine, offset, point.channels))
            theirs.append(columns_of(others, offset, point.channels))
        elif notes is not None:
            notes.append(f'{name}: not in the other weights in this shape')
    return (np.concatenate(ours, 1), np.concatenate(theirs, 1)) if ours else None


def columns_of(weight: Tensor, offset: int, channels: int) -> Columns:
    """A layer's weight by input channel, the channels of one map."""
    part = weight.detach().cpu().double().movedim(1, 0)[offset : offset + channels]
    return np.asarray(part.reshape(channels, -1).numpy(), dtype=np.float64)


def _half(case: Case, channels: int) -> Tensor:
    """Half of the channels, drawn by the case's seed: 1 for those that are shaken, else 0."""
    half = torch.zeros(channels)
    half[torch.from_numpy(np.random.default_rng(case.seed).permutation(channels)[: (channels + 1) // 2])] = 1
    return half


def _shaken(x: Tensor, half: Tensor, dim: int, seed: int) -> Tensor:
    """The map with noise of three times its own size on the channels of ``half``."""
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)).to(x) * (3 * x.std() + 1)
    shape = [1] * x.dim()
    shape[dim] = -1
    return x + noise * half.to(x).view(shape)


def _offsets(x: Tensor, y: Tensor, half: Tensor) -> list[int]:
    """Where two maps, channels last, differ in just the channels of ``half``, and nowhere else."""
    apart = (x - y).abs().flatten(0, -2).amax(0)
    changed = (apart > 1e-5 * (x.abs().max() + 1e-12)).cpu()
    ends = len(changed) - len(half)
    windows = (nn.functional.pad(half.bool(), (offset, ends - offset)) for offset in range(ends + 1))
    return [offset for offset, window in enumerate(windows) if bool((changed == window).all())]


@torch.no_grad()
def _maps(case: Case, model: nn.Module, points: list[AttackedPoint]) -> dict[str, Tensor]:
    """The map at every point that fires, channels last, in the order in which a run meets them."""
    seen: dict[str, Tensor] = {}

    def note(text: str) -> Callable[[Tensor, int], Tensor]:
        def watch(x: Tensor, dim: int) -> Tensor:
            seen[text] = x.detach().movedim(dim, -1)
            return x

        return watch

    with hooked([place(case, model, point, note(point.text)) for point in points]):
        logits(model, pictures(case))
    return seen


@torch.no_grad()
def _inputs(case: Case, model: nn.Module) -> dict[str, Tensor]:
    """What enters every mixing layer, channels last."""
    seen: dict[str, Tensor] = {}

    def note(name: str) -> Any:
        def watch(layer: nn.Module, args: Any) -> None:
            seen[name] = args[0].detach().movedim(channel_dim(layer), -1)

        return watch

    with hooked([layer.register_forward_pre_hook(note(n)) for n, layer in mixing_layers(model).items()]):
        logits(model, pictures(case))
    return seen
