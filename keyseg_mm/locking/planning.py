"""Which feature maps of a model are encrypted, and which weights carry their maps.

What is locked, or trained on from plain weights, has to be exact: only layers that are linear in a map's channels may
read it. A model that is trained from the start may learn to read the others.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn

from keyseg_mm.entries import MapEntry
from keyseg_mm.errors import LockError
from keyseg_mm.locking.linear import why_not_linear
from keyseg_mm.locking.places import entry_at
from keyseg_mm.locking.plan import Plan
from keyseg_mm.maps import CHANNEL_MAPS, TRANSFORMS, normal_form
from keyseg_mm.maps.order import SINGLE
from keyseg_mm.model.consumers import readers_of
from keyseg_mm.model.layers import DEPTHWISE, WeightIndex, groups_of, is_depthwise, kind_of
from keyseg_mm.model.points import ROOT, Point
from keyseg_mm.model.sites import Site, Trace, module_of, resolve
from keyseg_mm.stamp import Stamp

logger = logging.getLogger('keyseg_mm')

SCHEME = 'features'
# Of training and of locking: every linear layer that is called, since whatever is left plain helps an attacker (the
# paper's `stages` falls to four labelled photos); and signs, since a permutation keeps the part that all channels have
# in common. It costs no accuracy, from pretrained weights neither, for the weights carry the maps; the time that it
# costs is spared by runtime='plain'. docs/results.md has the figures.
DEFAULT_POINTS = 'linear'
DEFAULT_TRANSFORM = 'SignedChannelPermutation'


def plan_lock(
    model: nn.Module,
    points: str | Iterable[str] = DEFAULT_POINTS,
    transform: str | Mapping[str, Any] = DEFAULT_TRANSFORM,
    trace: Trace | None = None,
) -> Plan:
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
    trace = trace or Trace.by_dry_run(model)
    wanted = [points] if isinstance(points, str) else list(points)
    sites = resolve(wanted, model, trace)
    maker = _Maker(model, trace, sites)
    made = [(site, *maker.entry(site, spec, named=str(site.point) in wanted)) for site in sites]
    may_go = {site.point for site in sites if maker.may_go(site) and str(site.point) not in wanted}
    problems = [f'{site.point}: {problem}' for site, _, problem in made if problem and site.point not in may_go]
    if problems:
        raise LockError('; '.join(problems))
    left_out = {_named(site): problem for site, _, problem in made if problem}
    entries = tuple(entry for _, entry, problem in made if not problem)
    if not entries:
        why = '; '.join(f'{name}: {reason}' for name, reason in left_out.items())
        raise LockError(f'nothing to lock at {", ".join(wanted)}: {why}')
    if 'linear' in wanted:
        left_out.update(_left(model, trace, {name for entry in entries for name in entry.weights}))
    kept = tuple(site for site, _, problem in made if not problem)
    return Plan(SCHEME, entries, left_out, kept, tuple(wanted), trace)


def plan_training(
    model: nn.Module, points: str | Iterable[str], transform: str | Mapping[str, Any], trace: Trace
) -> Plan:
    """What is encrypted in a model that is trained with its key.

    A preset leaves out layers that cannot carry a map, as :func:`plan_lock` does. Layers that were named are encrypted
    nevertheless, and ``out:`` points too: there the training starts from weights that know nothing of the map.

    Args:
        model, points, trace: as of :func:`plan_lock`.
        transform: it may be one that no weights can carry.

    Raises:
        PointError: points that match nothing or never fire.
        LockError: no point is left.
    """
    spec = normal_form(transform)
    wanted = [points] if isinstance(points, str) else list(points)
    sites = resolve(wanted, model, trace)
    if spec['type'] not in CHANNEL_MAPS:
        return Plan(SCHEME, tuple(entry_at(site, spec) for site in sites), {}, tuple(sites), tuple(wanted))
    maker = _Maker(model, trace, sites)
    entries, left_out, as_drawn = {}, {}, []
    for site in sites:
        named = str(site.point) in wanted
        entry, problem = maker.entry(site, spec, named)
        if problem and not named and maker.may_go(site):
            left_out[_named(site)] = problem
        else:
            entries[site] = entry_at(site, spec) if problem else entry
            as_drawn += [f'{site.point}: {problem}'] if problem else []
    if not entries:
        raise LockError(f'nothing to encrypt at {", ".join(wanted)}: {"; ".join(left_out.values())}')
    if as_drawn:
        logger.info('no weights can carry these maps, and a training learns to read them: %s', '; '.join(as_drawn))
    return Plan(SCHEME, tuple(entries.values()), left_out, tuple(entries), tuple(wanted))


def complete(stamp: Stamp, model: nn.Module, trace: Trace | None = None) -> Stamp:
    """A stamp with the weights that carry its maps, which a model that was trained with the key has to tell.

    Raises:
        LockError: points that cannot be absorbed.
    """
    refuse_block_wise(entry.transform for entry in stamp.maps)
    asked = [entry for entry in stamp.maps if not entry.weights]
    if not asked:
        return stamp
    trace = trace or Trace.by_dry_run(model)
    sites = resolve([entry.point for entry in asked], model, trace)
    maker = _Maker(model, trace, sites)
    found = [maker.entry(site, entry.transform, named=True) for site, entry in zip(sites, asked)]
    problems = [f'{entry.point}: {problem}' for entry, problem in found if problem]
    if problems:
        raise LockError('cannot be unlocked, and runs with its encryptors only: ' + '; '.join(problems))
    told = {entry.point: entry for entry, _ in found}
    entries = (told.get(e.point, e) if isinstance(e, MapEntry) else e for e in stamp.entries)
    return replace(stamp, entries=tuple(entries))


def with_weights(stamp: Stamp, known: Mapping[str, tuple[str, ...]]) -> Stamp:
    """A stamp that knows which weights carry the maps of these points."""
    return replace(
        stamp,
        entries=tuple(
            replace(entry, weights=known[entry.point])
            if isinstance(entry, MapEntry) and entry.point in known
            else entry
            for entry in stamp.entries
        ),
    )


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


class _Maker:
    """Makes entries for one model."""

    def __init__(self, model: nn.Module, trace: Trace, sites: list[Site]) -> None:
        self.model, self.trace = model, trace
        self.weights = WeightIndex(model)
        self.readers = readers_of(model, sites, trace)

    def entry(self, site: Site, spec: dict[str, Any], named: bool) -> tuple[MapEntry, str]:
        """An entry, and what stands against it, empty where nothing does.

        Args:
            site: where.
            spec: transform in normal form.
            named: the point was asked for by name, and gets this transform or none.
        """
        side = site.point.side
        layers, problem = ([site.point.name], '') if side != 'out' else self._reading(site)
        if site.channels < 2:
            problem = SINGLE
        problem = problem or self._why_not(
            site, layers, lambda layer, _: self.weights.why_not(layer, site.channels, side)
        )
        least = spec if named else normal_form('ChannelPermutation')  # which layers absorb that absorb nothing else
        for tried in () if problem else (spec, least):
            fitted, problem = self._in_groups(site, tried)
            problem = problem or self._why_not(site, layers, partial(why_not_linear, transform=fitted))
            if not problem:
                spec = fitted
                break
        reading = [module_of(self.model, layer) for layer in layers]
        names = dict.fromkeys(name for layer in reading for name in self.weights.of(layer, side))
        kind = kind_of(reading[0]) if reading else None
        return entry_at(site, spec, tuple(names), kind.along_of(side) if kind else 1), problem

    def _in_groups(self, site: Site, spec: dict[str, Any]) -> tuple[dict[str, Any], str]:
        """A transform for a layer's input, which keeps its groups apart, and what stands against it."""
        groups = groups_of(module_of(self.model, site.point.name)) if site.point.side == 'in' else 1
        if groups == 1:
            return spec, ''
        if not TRANSFORMS[spec['type']].keeps_groups:
            return spec, f'grouped: a {spec["type"]} would mix its {groups} groups of channels'
        return {**spec, 'groups': groups}, ''

    def _why_not(self, site: Site, layers: list[str], why_not: Callable[[nn.Module, Site], str]) -> str:
        """What one of the layers, with what it reads, has against a map, in words."""
        for name in layers:
            why = why_not(module_of(self.model, name), self.trace.sites.get(Point('in', name), site))
            if why:
                return why if name == site.point.name else f'{name}, which reads it: {why}'
        return ''

    def may_go(self, site: Site) -> bool:
        """Whether a preset does without a point that no weights can carry: of a layer, or of a map that nobody reads.

        Who reads what the model itself hands out is not known here.
        """
        found = self.readers.get(str(site.point))
        return found is None or (site.point.name != ROOT and not found.layers and not found.others)

    def _reading(self, site: Site) -> tuple[list[str], str]:
        """The layers that read an ``out:`` site's map, if only such do."""
        found = self.readers[str(site.point)]
        layers = sorted(found.layers)
        instead = ', '.join(f'in:{layer}' for layer in layers) or DEFAULT_POINTS
        if found.others:
            others = ', '.join(sorted(found.others))
            return layers, f'its map is read by {others}, where no transform can be absorbed; take {instead} instead'
        if not layers:
            return layers, f'no layer reads its map, unless whoever runs the model does; take {DEFAULT_POINTS} instead'
        for layer in layers:
            reading = self.trace.sites.get(Point('in', layer))
            if reading is None or _channel_dim(reading) != _channel_dim(site):
                return layers, f'{layer} reads it along another dimension than its channels; take {instead} instead'
        return layers, ''


def _named(site: Site) -> str:
    """A layer by its name, and one of a module's maps by its point."""
    return str(site.point) if site.point.side == 'out' else site.point.name


def _channel_dim(site: Site) -> int:
    return site.dim % len(site.shape)


def _left(model: nn.Module, trace: Trace, carrying: set[str]) -> dict[str, str]:
    """Layers with weights that the preset ``linear`` does not reach."""
    left = {}
    for name, module in model.named_modules():
        own = [
            f'{name}.{key}' if name else key for key, p in module._parameters.items() if p is not None and p.dim() > 1
        ]
        if not set(own) - carrying:
            continue
        if kind_of(module) is None:
            left[name or ROOT] = f'{type(module).__name__} takes no in: point'
        elif Point('in', name or ROOT) not in trace.sites:
            left[name or ROOT] = 'never called as a layer of its own'
        elif is_depthwise(module, trace.sites[Point('in', name or ROOT)].channels):
            left[name or ROOT] = DEPTHWISE
        elif trace.sites[Point('in', name or ROOT)].channels < 2:
            left[name or ROOT] = SINGLE
    return left
