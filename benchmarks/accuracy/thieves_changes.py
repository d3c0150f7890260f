"""What thieves do to weights, in thieves.py: a change of each, or several copies put together."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from keyseg_mm.tracing.marking import carriers

Weights = dict[str, Tensor]


def size(value: Tensor) -> Tensor:
    return value.float().pow(2).mean().sqrt()


def noisy(value: Tensor, share: float) -> Tensor:
    return value + share * size(value) * torch.randn(value.shape, generator=torch.Generator().manual_seed(0))


def pruned(value: Tensor, share: float) -> Tensor:
    """The smallest weights set to zero."""
    least = value.abs().flatten().kthvalue(max(1, int(share * value.numel()))).values
    return value * (value.abs() > least)


def quantised(value: Tensor, bits: int, by_row: bool) -> Tensor:
    """To whole numbers of so many bits, and back."""
    largest = value.abs().flatten(1).amax(1).view(-1, *[1] * (value.dim() - 1)) if by_row else value.abs().max()
    step = (largest / (2 ** (bits - 1) - 1)).clamp_min(1e-12)
    return (value / step).round() * step


def moved(value: Tensor) -> Tensor:
    """Rows and columns in any order, and rows in any positive scale."""
    draw = torch.Generator().manual_seed(0)
    rows, columns = (torch.randperm(n, generator=draw) for n in value.shape[:2])
    scale = torch.exp(torch.randn(len(rows), generator=draw)).view(-1, *[1] * (value.dim() - 1))
    return value[rows][:, columns] * scale


def every(weights: Weights, change: Callable[[Tensor], Tensor]) -> Weights:
    """All layers' weights changed."""
    marked = carriers(weights)
    return {name: change(value) if name in marked else value for name, value in weights.items()}


def together(copies: list[Weights], change: Callable[[Tensor], Tensor]) -> Weights:
    """Several copies made one."""
    return {n: change(torch.stack([c[n].float() for c in copies])).to(copies[0][n].dtype) for n in copies[0]}


COLLUSIONS: dict[str, Callable[[Tensor], Tensor]] = {
    'mean': lambda c: c.mean(0),
    'median': lambda c: c.median(0).values,
    'largest': lambda c: c.max(0).values,
    'beyond (largest + smallest - median)': lambda c: c.max(0).values + c.min(0).values - c.median(0).values,
}
