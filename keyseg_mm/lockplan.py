"""What locking a model would do: which points, which weights carry their transforms, and what is left out, and why.

Public throughout: no key is needed to make a plan.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from keyseg_mm.errors import LockError
from keyseg_mm.maps import CHANNEL_MAPS, normal_form
from keyseg_mm.model.consumers import Readers, find_readers
from keyseg_mm.model.layers import WeightIndex, is_grouped, kind_of
from keyseg_mm.model.points import ROOT, Point
from keyseg_mm.model.sites import Site, Trace, module_of, resolve
from keyseg_mm.stamp import Entry, Plan, stamps_of

# Every linear layer that is called, since whatever is left plain helps an attacker; and signs, since a permutation
# keeps the part that all channels have in common. docs/results.md has the figures.
DEFAULT_POINTS = 'linear'
DEFAULT_TRANSFORM = 'SignedChannelPermutation'
_FEW = 5


@dataclass(frozen=True)
class LockPlan:
    """What locking a model would do.

    Attributes:
        entries: the points, with the weights that carry their transforms.
        sites: of the entries, in the same order.
        left_out: layers with input channels that stay plain, each with the reason.
    """

    entries: tuple[Entry, ...]
    sites: tuple[Site, ...]
    left_out: dict[str, str]

    def to_plan(self, key_id: str, salt: bytes) -> Plan:
        """The plan for a key and a salt, without a MAC."""
        return Plan(key_id, salt, self.entries)

    def without(self, points: Iterable[str], why: str) -> LockPlan:
        """The plan less some points."""
        drop = set(points)
        kept = [(entry, site) for entry, site in zip(self.entries, self.sites) if entry.point not in drop]
        left = {**self.left_out, **dict.fromkeys((Point.parse(point).name for point in drop), why)}
        return LockPlan(tuple(e for e, _ in kept), tuple(s for _, s in kept), left)


def plan_lock(
    model: nn.Module,
    points: str | Iterable[str] = DEFAULT_POINTS,
    transform: str | dict[str, Any] = DEFAULT_TRANSFORM,
    trace: Trace | None = None,
) -> LockPlan:
    """Find out what can be locked.

    Args:
        model: the plain model.
        points: a point or preset, or several. A preset leaves out what cannot be absorbed; a point named is an error.
        transform: name or dict of a transform. Weight-standardised layers of a preset get permutations.
        trace: which points fire; by default found by a dry run of the host's model.

    Raises:
        LockError: points that cannot be absorbed, all of them in one message.
        PointError: points that match nothing or never fire.
    """
    spec = normal_form(transform)
    refuse_block_wise([spec])
    trace = trace or _dry_run(model)
    wanted = [points] if isinstance(points, str) else list(points)
    sites = resolve(wanted, model, trace)
    maker = _Maker(model, trace, sites)
    entries: list[Entry] = []
    kept: list[Site] = []
    problems, left_out = [], {}
    for site in sites:
        entry, problem = maker.entry(site, spec, named=str(site.point) in wanted)
        if not problem:
            entries.append(entry)
            kept.append(site)
        elif site.point.side == 'in' and str(site.point) not in wanted:
            left_out[site.point.name] = problem
        else:
            problems.append(f'{site.point}: {problem}')
    if problems:
        raise LockError('; '.join(problems))
    if not entries:
        why = '; '.join(f'{name}: {reason}' for name, reason in left_out.items())
        raise LockError(f'nothing to lock at {", ".join(wanted)}: {why}')
    if 'linear' in wanted:
        left_out.update(_left(model, trace))
    return LockPlan(tuple(entries), tuple(kept), left_out)


def complete(plan: Plan, model: nn.Module, trace: Trace | None = None) -> Plan:
    """A plan with the weights that carry its transforms, which a model that was trained with the key has to tell.

    Raises:
        LockError: points that cannot be absorbed.
    """
    refuse_block_wise(entry.transform for entry in plan.entries)
    if all(entry.weights for entry in plan.entries):
        return plan
    trace = trace or _dry_run(model)
    sites = resolve([entry.point for entry in plan.entries], model, trace)
    maker = _Maker(model, trace, sites)
    found = [maker.entry(site, entry.transform, named=True) for site, entry in zip(sites, plan.entries)]
    problems = [f'{entry.point}: {problem}' for entry, problem in found if problem]
    if problems:
        raise LockError('cannot be unlocked, and runs with its encryptors only: ' + '; '.join(problems))
    return replace(plan, entries=tuple(entry for entry, _ in found))


def refuse_block_wise(transforms: Iterable[Mapping[str, Any]]) -> None:
    """Refuse transforms, in normal form, that no layer's weights can carry.

    Raises:
        LockError: one of them does not treat every position alike.
    """
    others = dict.fromkeys(spec['type'] for spec in transforms if spec['type'] not in CHANNEL_MAPS)
    if others:
        raise LockError(
            f"{', '.join(others)}: what it does to a value depends on its position, and no layer's weights can carry "
            f'that; lock, rekey, unlock and audit take {", ".join(CHANNEL_MAPS)}. It is for models that are trained '
            'with their key (protection.transform), and these run with their encryptors only'
        )


def fit(state_dict: Mapping[str, Any], model: nn.Module, drop: bool = False) -> dict[str, Any]:
    """A plain state_dict, checked against its model.

    Args:
        state_dict: with or without the prefix ``module.`` that data-parallel wrappers leave.
        model: the plain model.
        drop: leave out entries that the model does not know (old EMA copies, say, which would stay plain).

    Raises:
        LockError: protected already, entries missing or of another shape, or unknown ones without ``drop``.
    """
    if stamps_of(state_dict):
        raise LockError('this checkpoint is protected already; to give it another key: keyseg rekey')
    found = unwrap(state_dict)
    expected = model.state_dict()
    missing = [name for name in expected if name not in found and not name.endswith('num_batches_tracked')]
    unknown = [name for name in found if name not in expected]
    shapes = [name for name in found if name in expected and _shape(found[name]) != _shape(expected[name])]
    problems = [('missing', missing), ('of another shape', shapes), *([] if drop else [('not in the model', unknown)])]
    words = '; '.join(f'{len(names)} {what} ({_few(names)})' for what, names in problems if names)
    if words:
        raise LockError(f'this checkpoint does not fit the model of this config: {words}')
    return {name: value for name, value in found.items() if name in expected}


def unwrap(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """A state_dict without the prefix ``module.`` that data-parallel wrappers leave."""
    prefix = 'module.'
    wrapped = bool(state_dict) and all(name.startswith(prefix) for name in state_dict)
    return {name[len(prefix) * wrapped :]: value for name, value in state_dict.items()}


class _Maker:
    """Makes entries for one model."""

    def __init__(self, model: nn.Module, trace: Trace, sites: Iterable[Site]) -> None:
        self.model, self.trace = model, trace
        self.weights = WeightIndex(model)
        self.readers = _readers(model, list(sites))

    def entry(self, site: Site, spec: dict[str, Any], named: bool) -> tuple[Entry, str]:
        """An entry, and what stands against it, empty where nothing does.

        Args:
            site: where.
            spec: transform in normal form.
            named: the point was asked for by name, and gets this transform or none.
        """
        layers, problem = ([site.point.name], '') if site.point.side == 'in' else self._reading(site)
        kinds = [kind_of(module_of(self.model, layer)) for layer in layers]
        if not named and any(kind and kind.permutation_only for kind in kinds):
            spec = normal_form('ChannelPermutation')
        if site.channels < 2:
            problem = 'it has a single channel, and there is nothing to mix'
        for layer in layers:
            why = self.weights.why_not(module_of(self.model, layer), site.channels, spec)
            problem = problem or (f'{why}' if layer == site.point.name else why and f'{layer}, which reads it: {why}')
        names = dict.fromkeys(name for layer in layers for name in self.weights.of(module_of(self.model, layer)))
        return Entry(str(site.point), site.channels, spec, tuple(names)), problem

    def _reading(self, site: Site) -> tuple[list[str], str]:
        """The layers that read an ``out:`` site's map, if only such do."""
        found = self.readers[str(site.point)]
        layers = sorted(found.layers)
        instead = ', '.join(f'in:{layer}' for layer in layers) or DEFAULT_POINTS
        if found.others:
            others = ', '.join(sorted(found.others))
            return layers, f'its map is read by {others}, where no transform can be absorbed; take {instead} instead'
        if not layers:
            return layers, f'no layer reads its map: it is what the model hands out; take {DEFAULT_POINTS} instead'
        for layer in layers:
            reading = self.trace.sites.get(Point('in', layer))
            if reading is None or _channel_dim(reading) != _channel_dim(site):
                return layers, f'{layer} reads it along another dimension than its channels; take {instead} instead'
        return layers, ''


def _channel_dim(site: Site) -> int:
    return site.dim % len(site.shape)


def _dry_run(model: nn.Module) -> Trace:
    from keyseg_mm.mm.dryrun import trace_module

    return trace_module(model)


def _readers(model: nn.Module, sites: list[Site]) -> dict[str, Readers]:
    if all(site.point.side == 'in' for site in sites):
        return {}
    from keyseg_mm.mm.dryrun import watch_module

    return watch_module(model, lambda double, passes: find_readers(double, sites, passes))


def _left(model: nn.Module, trace: Trace) -> dict[str, str]:
    """Layers with weights that the preset ``linear`` does not reach."""
    left = {}
    for name, module in model.named_modules():
        if not any(p is not None and p.dim() > 1 for p in module._parameters.values()):
            continue
        if kind_of(module) is None:
            left[name or ROOT] = f'a {type(module).__name__}, which takes no in: point'
        elif Point('in', name or ROOT) not in trace.sites:
            left[name or ROOT] = 'never called as a layer of its own'
        elif is_grouped(module):
            left[name or ROOT] = 'grouped: its channels are kept apart, and the map would mix them'
    return left


def _shape(value: Any) -> Any:
    return tuple(getattr(value, 'shape', ())) or None


def _few(names: list[str]) -> str:
    return ', '.join(names[:_FEW]) + (' ...' if len(names) > _FEW else '')
