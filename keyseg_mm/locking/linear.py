"""Whether a layer that computes something of its own is linear enough to absorb a map: it is tried.

Weight standardisation, partial and gated convolutions, convolutions that pad by themselves: all are subclasses of the
stock layers. Some absorb every map, some permutations alone, some none, and only running them tells.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from keyseg_mm.bind import derive_channel_map
from keyseg_mm.keys.key import FeatureSecret
from keyseg_mm.locking.places import entry_at
from keyseg_mm.maps import ChannelMap
from keyseg_mm.maps.carried import Carried
from keyseg_mm.model.layers import KINDS, Kind, carriers_of, is_stock, kind_of, plain_class
from keyseg_mm.model.outputs import flat_tensors
from keyseg_mm.model.sites import Site

_PUBLIC = FeatureSecret(bytes(range(32)))  # what is tried are maps of no key
_TRIALS = 4
_LARGEST_SIDE = 32
_LIMIT = 1e-4  # of the relative error: sums are reordered


def why_not_linear(layer: nn.Module, site: Site, transform: Mapping[str, Any]) -> str:
    """Why a map of what a layer reads or gives cannot be carried by its weights; empty where it can.

    Args:
        layer: of a kind that takes ``in:`` points; it stays as it is.
        site: of its input, or of what leaves it.
        transform: in normal form.
    """
    kind = kind_of(layer)
    if kind is None or is_stock(layer) or _absorbs(layer, kind, site, transform):
        return ''
    where = 'output' if site.point.side == 'back' else 'input'
    base = next(cls.__name__ for cls in type(layer).__mro__ if cls.__name__ in KINDS)
    return (
        f'a {type(layer).__name__} computes otherwise than the {base} that it is made of, and a {transform["type"]} of '
        f'its {where} changes what it gives, with any weights that were tried'
    )


def _absorbs(layer: nn.Module, kind: Kind, site: Site, transform: Mapping[str, Any]) -> bool:
    plain: Any = copy.deepcopy(layer)
    plain.__class__ = plain_class(layer)
    entry = entry_at(site, transform)
    shape = [2, *(min(side, _LARGEST_SIDE) for side in site.shape[1:])]
    shape[site.dim] = site.channels
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        plain = plain.to_empty(device='cpu') if any(p.is_meta for p in plain.parameters()) else plain.cpu()
        plain.float()
        for parameter in plain.parameters():  # its own may be zeros, or fresh memory, and would prove nothing
            parameter.copy_(torch.randn(parameter.shape) / 4)
        for trial in range(_TRIALS):
            secret = derive_channel_map(_PUBLIC, bytes([trial] * 16), entry)
            locked = copy.deepcopy(plain)
            side = site.point.side
            for weight in carriers_of(locked, kind, side).values():
                if weight is not None:
                    weight.copy_(Carried(secret, kind.along_of(side)).carry(weight))
            for module in (plain, locked):
                module.train(bool(trial % 2))
            if not _agree(plain, locked, torch.randn(shape), site, secret):
                return False
    return True


def _agree(plain: nn.Module, locked: nn.Module, x: Tensor, site: Site, secret: ChannelMap) -> bool:
    leaves = site.point.side == 'back'
    try:
        one, other = _run(plain, x, site), _run(locked, x if leaves else secret(x, site.dim), site)
        other = secret.inverse()(other, site.dim) if leaves else other
    except Exception:  # it takes more than its input, or is picky in another way
        return False
    return one.shape == other.shape and float((one - other).norm()) <= _LIMIT * float(one.norm())


def _run(module: nn.Module, x: Tensor, site: Site) -> Tensor:
    torch.manual_seed(1)
    return next(iter(flat_tensors(module(*[x] * len(site.inputs)))))
