"""What the points of a protected model do to its predictions.

A point may fire and protect nothing: the map of a stage that no head reads, or of an auxiliary head, which has no part
in what the model predicts. One pass and its gradients tell, for all points at once: by how much the output changes, to
first order, where one point's encryptor alone is taken off. Points for which that is nothing are then tried.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from keyseg_mm.locking.proof import agreement
from keyseg_mm.maps import Map
from keyseg_mm.mm.bench import run_passes
from keyseg_mm.mm.dryrun import watch_module
from keyseg_mm.model.passes import Passes
from keyseg_mm.model.sites import Site, module_of
from keyseg_mm.runtime.attach import protected_modules
from keyseg_mm.runtime.encryptor import Encryptor, add_encryptors

# Relative, above rounding and far below what a map does that is read: two random directions of a feature map of a
# million values are at an angle of 1e-3 from the right one.
_NO_SLOPE, _NO_CHANGE = 1e-6, 1e-6


@dataclass(frozen=True)
class Effects:
    """What the points of a model do in testing.

    Attributes:
        idle: points without which the model predicts the same.
        bypassed: points whose layer is not called in testing although its weight is read.
    """

    idle: tuple[str, ...] = ()
    bypassed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Place:
    """An encrypted site of a model, by its name in the model; its map; whether it was asked for by name."""

    site: Site
    map: Map
    is_named: bool


def places_in(model: nn.Module) -> list[Place]:
    """The encrypted sites of a model and of the parts in it."""
    names = {id(module): name for name, module in model.named_modules()}
    return [
        Place(_seen_from(e.site, names[id(module)]), e.map, str(e.site.point) in protection.rules.named)
        for module, protection in protected_modules(model)
        for e in protection.encryptors
    ]


_LARGER = 128  # side of the images where points are tried again


def effects_in(model: nn.Module) -> Effects:
    """Find out by running a copy of a protected model, small, as in testing.

    Raises:
        PointError: the host cannot run it.
    """
    places = places_in(model)

    def watch(double: nn.Module, passes: Passes) -> Effects:
        _wake(double)
        probes = [_Probe(place.site, place.map) for place in places]
        add_encryptors(double, probes)
        called: set[int] = set()
        handles = [m.register_forward_hook(lambda m, *_: called.update(_own(m))) for m in double.modules()]
        with torch.enable_grad():
            outputs = [t for t in run_passes(passes, ['test']).values() if t.requires_grad]
        for handle in handles:
            handle.remove()
        _set_slopes(outputs, probes)
        read = _read_by(outputs) - called
        bypassed = [p for p in probes if not p.calls and _own(module_of(double, p.site.point.name)) & read]
        idle = _idle([p for p in probes if not p.slope > _NO_SLOPE], passes)
        return Effects(*(tuple(str(p.site.point) for p in found) for found in (idle, bypassed)))

    if not places:
        return Effects()
    found = watch_module(model, watch)
    if found.idle:  # small, a map may have a single value at each place, and an attention nothing to choose from
        idle = set(found.idle) & set(watch_module(model, watch, smallest=_LARGER).idle)
        found = replace(found, idle=tuple(point for point in found.idle if point in idle))
    return found


def _seen_from(site: Site, prefix: str) -> Site:
    """A site of a part by its name in the whole."""
    name = '.'.join(part for part in (prefix, site.point.name.strip('.')) if part) or '.'
    return replace(site, point=replace(site.point, name=name))


class _Probe(Encryptor):
    """An encryptor that can be taken off, and listens for what its map does to the output."""

    __slots__ = ('anchor', 'slope', 'is_off')

    def __init__(self, site: Site, secret: Map) -> None:
        super().__init__(site, secret, torch.device('cpu'), torch.float32)
        self.anchor, self.slope, self.is_off = torch.zeros((), requires_grad=True), 0.0, False

    def _encrypt(self, x: Tensor) -> Tensor:
        self.calls += 1
        y = x if self.is_off else self.work(x, self.site.dim)
        if not torch.is_grad_enabled():
            return y
        heard: Tensor = _Listen.apply(y, y.detach() - x.detach(), self.anchor, self)  # type: ignore[no-untyped-call]
        return heard


class _Listen(torch.autograd.Function):
    """Hands a map on, and learns from its gradient how the output would change without the encryptor, relatively."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, change: Tensor, anchor: Tensor, probe: _Probe) -> Tensor:
        ctx.change, ctx.probe = change, probe
        return y.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad, change = grads[0].double(), ctx.change.double()
        size = float(grad.norm() * change.norm())
        ctx.probe.slope = max(ctx.probe.slope, abs(float((grad * change).sum())) / size if size else 0.0)
        return grads[0], None, torch.zeros(()), None


def _set_slopes(outputs: Sequence[Tensor], probes: Sequence[_Probe]) -> None:
    """Send one random direction of the outputs back to the probes, and to nothing else."""
    random = torch.Generator().manual_seed(0)
    directions = [torch.randn(t.shape, generator=random).to(t) for t in outputs]
    if outputs:
        torch.autograd.grad(outputs, [probe.anchor for probe in probes], directions, allow_unused=True)


def _idle(suspects: list[_Probe], passes: Passes) -> list[_Probe]:
    """Those of the suspects without which the output is the same, by halving."""
    if not suspects:
        return []
    want = run_passes(passes, ['test'])
    for probe in suspects:
        probe.is_off = True
    found = run_passes(passes, ['test'])
    for probe in suspects:
        probe.is_off = False
    if agreement(want, found).error <= _NO_CHANGE:
        return suspects
    half = len(suspects) // 2
    return [probe for part in (suspects[:half], suspects[half:]) if half for probe in _idle(part, passes)]


def _wake(model: nn.Module) -> None:
    """Let branches take part that begin as zeros, as the last norm of a residual block often does."""
    random = torch.Generator().manual_seed(0)
    fresh: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, p in module._parameters.items():
            if p is not None and name != 'bias' and p.is_floating_point() and not p.any():
                size = (p.numel() // p.shape[0]) ** -0.5 if p.dim() > 1 else 1.0
                value = (torch.rand(p.shape, generator=random) + 0.5) * size
                module._parameters[name] = fresh.setdefault(id(p), nn.Parameter(value.to(p)))


def _own(module: nn.Module) -> set[int]:
    return {id(p) for p in module.parameters(recurse=False)}


def _read_by(outputs: Sequence[Tensor]) -> set[int]:
    """The parameters that outputs were computed from."""
    found: set[int] = set()
    ways, left = set(), [t.grad_fn for t in outputs]
    while left:
        way = left.pop()
        if way is not None and way not in ways:
            ways.add(way)
            found.add(id(getattr(way, 'variable', None)))
            left += [following for following, _ in way.next_functions]
    return found
