"""How far a training has come from the public weights that it began with.

Maps that weights carry hide nothing from whoever knows much the same weights without them: the channels of a layer are
told apart by what they hold. So a run that began from a plain file says at its end what is still close to it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from keyseg_mm.mm.advice import CLOSE
from keyseg_mm.runtime.attach import protected_modules

# Values kept of each weight, spread over it: 16 KiB, where a copy of all would take as much as the model. They tell a
# distance to a few percent of itself.
_SAMPLE = 4096
_NEAREST = 3  # weights named


class Beginning:
    """What the weights of a protected model that carry its maps are now, in small.

    Args:
        model: as a training begins.
        names: of the weights that count: which came from a file.
    """

    def __init__(self, model: nn.Module, names: Collection[str]) -> None:
        self._kept = {name: _sample(weight) for name, weight in _carrying(model) if name in names}

    def distances(self, model: nn.Module) -> dict[str, float]:
        """By weight, the norm of what changed relative to what it was; 1.4 for one that has nothing to do with it."""
        now = {name: _sample(weight) for name, weight in _carrying(model) if name in self._kept}
        return {name: _distance(self._kept[name], value) for name, value in now.items()}

    def words(self, model: nn.Module) -> str:
        """What the model's owner should know at the end of the training; empty if nothing is close any more."""
        found, sizes = self.distances(model), {name: weight.numel() for name, weight in _carrying(model)}
        close = sorted((distance, name) for name, distance in found.items() if distance < CLOSE)
        if not close:
            return ''
        share = sum(sizes[name] for _, name in close) / sum(p.numel() for p in model.parameters())
        nearest = ', '.join(f'{name} ({distance:.3f})' for distance, name in close[:_NEAREST])
        return (
            f'{len(close)} of {len(found)} weights that carry maps, {100 * share:.0f} % of the parameters, are still '
            f'close to the plain ones that this training began with (relative distance below {CLOSE:g}; the nearest: '
            f'{nearest}). If those are public: whoever has them and gets this model out of its seal (from memory, or '
            'as an exported graph) can find these maps without the key. The sealed file gives them nothing. Training '
            'longer, or from random weights, leaves less (docs/threat-model.md)'
        )


def names_from_files(model: nn.Module) -> set[str]:
    """The parameters of a model that the host fills from files: those below an ``init_cfg`` of type ``Pretrained``."""
    found: set[str] = set()
    for place, module in model.named_modules():
        init: Any = getattr(module, 'init_cfg', None)
        if any(isinstance(one, dict) and one.get('type') == 'Pretrained' for one in _listed(init)):
            found.update('.'.join(filter(None, (place, name))) for name, _ in module.named_parameters())
    return found


def _listed(init: Any) -> list[Any]:
    return list(init) if isinstance(init, (list, tuple)) else [init]


def _carrying(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The weights that carry maps, each once, by their names in the model."""
    places = {id(module): name for name, module in model.named_modules()}
    for module, protection in protected_modules(model):
        own = dict(module.named_parameters())
        names = dict.fromkeys(name for entry in protection.stamp.maps for name in entry.weights if name in own)
        yield from (('.'.join(filter(None, (places[id(module)], name))), own[name]) for name in names)


def _sample(weight: Tensor) -> Tensor:
    flat = weight.detach().flatten()
    places = torch.linspace(0, flat.numel() - 1, min(flat.numel(), _SAMPLE), dtype=torch.float64).round().long()
    return flat[places.to(flat.device)].float().cpu()


def _distance(old: Tensor, new: Tensor) -> float:
    return float((new - old).norm() / old.norm().clamp_min(1e-12))
