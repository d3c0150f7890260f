"""What an attacker makes of the public plan: his points with their families, and the layers that read each map.

Nothing here knows a key. Readers are found by probing: noise is added to half of the channels of a map, and a layer
whose input changes in exactly that half, shifted by some offset, reads the map as it is, whatever activations, norms,
depthwise convolutions, resizings and concatenations lie between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]
from torch import Tensor, nn

from keyseg_mm.audit.case import Case, GuessHook
from keyseg_mm.entries import MapEntry
from keyseg_mm.maps import ChannelMap, ChannelPermutation, ChannelRotation, SignedChannelPermutation
from keyseg_mm.maps.channels import DEFAULT_BLOCK
from keyseg_mm.model.points import Point
from keyseg_mm.model.sites import module_of

MIXING = (nn.Conv2d, nn.Linear)  # what can read a map, and mixes its channels unless it is grouped


@dataclass(frozen=True)
class Spot:
    """One point of the plan, as the attacker sees it.

    Attributes:
        entry: of the plan.
        point: where.
    """

    entry: MapEntry
    point: Point

    @property
    def text(self) -> str:
        """The point's text, by which guesses go."""
        return self.entry.point

    @property
    def channels(self) -> int:
        """Channels of the map."""
        return self.entry.channels

    @property
    def family(self) -> str:
        """Name of the transform."""
        return str(self.entry.transform['type'])

    @property
    def signed(self) -> bool:
        """Whether channels may be negated."""
        return self.family == SignedChannelPermutation.__name__

    def blocks(self) -> list[slice]:
        """The runs of channels that a rotation turns among themselves; all channels in one run for other families."""
        if self.family != ChannelRotation.__name__:
            return [slice(0, self.channels)]
        size = int(self.entry.transform.get('block', DEFAULT_BLOCK))
        return [slice(at, min(at + size, self.channels)) for at in range(0, self.channels, size)]

    def round(self, matrix: NDArray[Any]) -> ChannelMap:
        """The map of this family that is nearest to a matrix M, ``T(x) = M @ x``: largest sum of products with M."""
        if self.family == ChannelRotation.__name__:
            return rotation_of([polar(matrix[b, b]) for b in self.blocks()])
        if self.signed:
            return signed_of(matrix)
        return ChannelPermutation(assign(matrix))

    def random(self, rng: np.random.Generator) -> ChannelMap:
        """A random map of the family."""
        if self.family == ChannelRotation.__name__:
            sizes = [b.stop - b.start for b in self.blocks()]
            return rotation_of([polar(rng.standard_normal((n, n))) for n in sizes])
        table = rng.permutation(self.channels)
        if self.signed:
            return SignedChannelPermutation(table, rng.choice(np.array([-1, 1], dtype=np.int8), self.channels))
        return ChannelPermutation(table)


def spots_of(case: Case) -> list[Spot]:
    """The points of the plan that this package's transforms stand at, in the plan's order."""
    return [Spot(entry, Point.parse(entry.point)) for entry in case.plan.maps]


def assign(score: NDArray[Any]) -> NDArray[np.int64]:
    """The permutation of the largest total score (Kuhn 1955): ``table[i] = j`` for the pairs (i, j) chosen."""
    return np.asarray(linear_sum_assignment(-np.nan_to_num(score))[1], dtype=np.int64)


def signed_of(matrix: NDArray[Any]) -> SignedChannelPermutation:
    """The signed permutation nearest to a matrix."""
    table = assign(np.abs(matrix))
    signs = np.where(matrix[np.arange(len(table)), table] < 0, -1, 1).astype(np.int8)
    return SignedChannelPermutation(table, signs)


def polar(matrix: NDArray[Any]) -> NDArray[np.float64]:
    """The orthogonal matrix nearest to a matrix (Schoenemann 1966)."""
    u, _, v = np.linalg.svd(np.nan_to_num(np.asarray(matrix, dtype=np.float64)))
    return np.asarray(u @ v, dtype=np.float64)


def rotation_of(blocks: list[NDArray[np.float64]]) -> ChannelRotation:
    """A rotation from the matrices of its blocks, the last of which may be smaller."""
    size = blocks[0].shape[0]
    full = [b for b in blocks if b.shape[0] == size]
    rest = blocks[-1] if blocks[-1].shape[0] != size else np.empty((0, 0))
    return ChannelRotation(np.stack(full), rest)


def array_of(guess: ChannelMap) -> NDArray[np.float64]:
    """A guess as a (c, c) float64 array."""
    return np.asarray(guess.matrix().numpy(), dtype=np.float64)


def quiet(progress: float, words: str) -> None:
    """A progress that goes nowhere, for steps within steps."""


@contextmanager
def local_seed(seed: int) -> Iterator[None]:
    """Seed torch for the block (dropout and the like draw from it) and put its state back afterwards."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield


def pictures(case: Case, count: int = 2, side: int = 64) -> Tensor:
    """A few images to run a model on: the case's own where it grants any, else noise."""
    for photos in (case.unlabelled, case.labelled):
        if photos is not None:
            return photos.images[:count]
    device = next(iter(case.weights.values())).device
    noise = torch.Generator().manual_seed(case.seed)
    return torch.randn(count, 3, side, side, generator=noise).to(device)


@contextmanager
def hooked(handles: list[Any]) -> Iterator[None]:
    """Take hooks off again."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def mixing_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Every ungrouped Conv2d and Linear by name."""
    return {n: m for n, m in model.named_modules() if isinstance(m, MIXING) and getattr(m, 'groups', 1) == 1}


def channel_dim(layer: nn.Module) -> int:
    """Channel dimension of what enters a mixing layer."""
    return -1 if isinstance(layer, nn.Linear) else 1


def firing_order(case: Case, spots: list[Spot]) -> list[Spot]:
    """The spots in the order in which a run of the model meets them; those that never fire (training only) left out."""
    model, met = case.model(), []

    def note(text: str) -> Callable[[Tensor, int], Tensor]:
        def guess(x: Tensor, dim: int) -> Tensor:
            met.append(text)
            return x

        return guess

    for spot in spots:
        GuessHook(spot.point, note(spot.text), (case.sites or {}).get(spot.text)).attach(model)
    with torch.no_grad():
        case.logits(model, pictures(case, 1))
    order = {text: at for at, text in reversed(list(enumerate(met)))}
    return sorted((s for s in spots if s.text in order), key=lambda s: order[s.text])


def readers_of(case: Case, spot: Spot) -> list[tuple[str, int]]:
    """The layers that read a point's map, each with the offset of the map's channels in its input.

    For an ``in:`` point that is its layer. For an ``out:`` point they are found by probing.
    """
    if spot.point.side == 'in':
        return [(spot.point.name, 0)]
    model = case.model()

    def place(half: Tensor) -> Any:
        def shake(x: Tensor, dim: int) -> Tensor:
            return shaken(x, half, dim, case.seed)

        return GuessHook(spot.point, shake, (case.sites or {}).get(spot.text)).attach(model)

    return probe(case, model, spot.channels, place)


def shaken(x: Tensor, half: Tensor, dim: int, seed: int) -> Tensor:
    """The map with noise of three times its own size on the channels of ``half``."""
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)).to(x) * (3 * x.std() + 1)
    shape = [1] * x.dim()
    shape[dim] = -1
    return x + noise * half.to(x).view(shape)


@torch.no_grad()
def probe(case: Case, model: nn.Module, channels: int, place: Callable[[Tensor], Any]) -> list[tuple[str, int]]:
    """Layers whose input changes in just the channels that ``place`` shakes, with the offset of those channels."""
    half = torch.zeros(channels)
    half[torch.from_numpy(np.random.default_rng(case.seed).permutation(channels)[: (channels + 1) // 2])] = 1
    images = pictures(case, 1)
    before = _inputs(case, model, images)
    with hooked([place(half)]):
        after = _inputs(case, model, images)
    found = []
    for name, x in before.items():
        y = after.get(name)
        if y is None or y.shape != x.shape:
            continue
        changed = _changed(x, y)
        for offset in range(0, len(changed) - channels + 1):
            window = torch.zeros(len(changed), dtype=torch.bool)
            window[offset : offset + channels] = half.bool()
            if bool((changed == window).all()):
                found.append((name, offset))
    return found


def _inputs(case: Case, model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """What enters every mixing layer, channels last."""
    seen: dict[str, Tensor] = {}

    def note(name: str) -> Any:
        def hook(layer: nn.Module, args: Any) -> None:
            seen[name] = args[0].detach().movedim(channel_dim(layer), -1)

        return hook

    with hooked([layer.register_forward_pre_hook(note(n)) for n, layer in mixing_layers(model).items()]):
        case.logits(model, images)
    return seen


def _changed(x: Tensor, y: Tensor) -> Tensor:
    """Which channels differ at all."""
    apart = (x - y).abs().flatten(0, -2).amax(0)
    return (apart > 1e-5 * (x.abs().max() + 1e-12)).cpu()


def columns_of(weight: Tensor, offset: int, channels: int) -> NDArray[np.float64]:
    """A layer's weight by input channel: (channels, everything else), float64."""
    part = weight.detach().cpu().double().movedim(1, 0)[offset : offset + channels]
    return np.asarray(part.reshape(channels, -1).numpy(), dtype=np.float64)


def layer_weight(weights: Any, name: str) -> Tensor | None:
    """A layer's weight in a state_dict, or None if it is not there."""
    found = weights.get(f'{name}.weight')
    return found if isinstance(found, Tensor) else None


def site_module(model: nn.Module, spot: Spot) -> nn.Module:
    """The module of a spot."""
    return module_of(model, spot.point.name)
