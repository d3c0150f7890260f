"""Three convolutions, plain and keyed: the smallest model with maps to encrypt, which needs no host."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from keyseg_mm import SecretKey, Trace, attach, entries_at, protections, resolve
from keyseg_mm.runtime.encryptor import Encryptor
from keyseg_mm.runtime.protection import Rules

KEY = SecretKey(bytes(range(32)))
SALTS = tuple(bytes([number] * 16) for number in range(4))
POINTS = ('out:0', 'in:2', 'in:4')
CHANNELS = 32


def layers(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, CHANNELS, 3), nn.ReLU(), nn.Conv2d(CHANNELS, CHANNELS, 3), nn.ReLU(), nn.Conv2d(CHANNELS, 4, 1)
    )


def pictures(batch: int = 2) -> Tensor:
    return torch.rand(batch, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def sites_in(model: nn.Module, points: Sequence[str] = POINTS):
    return resolve(points, model, Trace.of(model, {'test': lambda: model(pictures())}))


def keyed_layers(
    salt: bytes = SALTS[0],
    transform: str = 'SignedChannelPermutation',
    points: Sequence[str] = POINTS,
    seed: int = 0,
    rules: Rules = Rules(),  # noqa: B008 - frozen
) -> nn.Sequential:
    model = layers(seed)
    sites = sites_in(model, points)
    attach(model, KEY, sites, entries_at(sites, transform), salt=salt, rules=rules)
    return model


def encryptors(model: nn.Module) -> list[Encryptor]:
    return protections(model)[0].encryptors
