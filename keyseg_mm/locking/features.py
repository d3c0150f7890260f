"""The scheme of encrypted feature maps: orthogonal maps of the channels, carried into the layers that read them.

For an orthogonal channel map T in front of a linear layer W, ``(W T^-1)(T x) = W x``. So the locked weights are
``W T^-1``, which for an orthogonal T is T itself along W's input channels, and an authorised model, whose encryptors
compute ``T x``, gives what the plain one gave. Permutations and signs move and negate values and change no bit of them:
unlocking gives the plain weights back exactly. Rotations are computed in float64 and rounded once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn

from keyseg_mm.bind import Bound, derive_map
from keyseg_mm.entries import Entry, MapEntry
from keyseg_mm.errors import LockError
from keyseg_mm.keys.identity import Key
from keyseg_mm.locking.linear import why_not_linear
from keyseg_mm.locking.places import entry_at
from keyseg_mm.locking.plan import Plan
from keyseg_mm.locking.proof import Agreement, Bench, Proof, agreement
from keyseg_mm.locking.scheme import Scheme, change_maps, register
from keyseg_mm.maps import CHANNEL_MAPS, TRANSFORMS, normal_form
from keyseg_mm.maps.order import SINGLE
from keyseg_mm.model.consumers import readers_of
from keyseg_mm.model.layers import WeightIndex, is_grouped, kind_of
from keyseg_mm.model.passes import copied
from keyseg_mm.model.points import ROOT, Point
from keyseg_mm.model.sites import Site, Trace, module_of, resolve
from keyseg_mm.stamp import Stamp

# Every linear layer that is called, since whatever is left plain helps an attacker; and signs, since a permutation
# keeps the part that all channels have in common. docs/results.md has the figures.
DEFAULT_POINTS = 'linear'
DEFAULT_TRANSFORM = 'SignedChannelPermutation'


@register
class Features(Scheme):
    """Feature maps are encrypted; the model runs with its encryptors, or opened."""

    name = 'features'
    entry = MapEntry

    def plan(self, model: nn.Module, weights: Mapping[str, Any], **options: Any) -> Plan:
        """See :func:`plan_lock` for the options."""
        return plan_lock(model, **options)

    def carry(
        self, tensors: dict[str, Any], prefix: str, before: Bound | None, after: Bound | None, own: bool = False
    ) -> None:
        old, new = (bound.weight_maps() if bound else {} for bound in (before, after))
        change_maps(tensors, prefix, old, new, own)

    def prove(
        self, bench: Bench, model: nn.Module, weights: Mapping[str, Any], plan: Plan, key: Key, salt: bytes
    ) -> Proof:
        """Points of a preset that make the model wrong are left out; those that were named are an error."""
        trial = _Trial(self, bench, model, weights, key, salt)
        with_key = trial.compare(plan)
        if not with_key.is_equal:
            blame = trial.culprits(plan)
            named = [point for point in blame if point in plan.named]
            if named or not blame:
                raise LockError(_not_the_plain_one(named, with_key))
            plan = plan.without(blame, 'its weight is used for more than the layer itself (found by the proof)')
            with_key = trial.compare(plan)
            if not with_key.is_equal:
                raise LockError(_not_the_plain_one([], with_key))
        without_key = trial.compare(plan, authorised=False)
        if without_key.is_the_same:
            raise LockError(
                f'locked at {", ".join(plan.asked)} the model gives the same without the key (relative change '
                f'{without_key.error:.1e}): nothing would be protected. Take other points. Nothing was written'
            )
        return Proof(plan, with_key, {'without it': without_key})

    def key_space(self, entry: Entry) -> float:
        if not isinstance(entry, MapEntry):
            raise TypeError
        params = {name: value for name, value in entry.transform.items() if name != 'type'}
        return TRANSFORMS[entry.transform['type']].key_space(entry.channels, **params)


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
    may_go = {site.point for site in sites if site.point.side == 'in' and str(site.point) not in wanted}
    problems = [f'{site.point}: {problem}' for site, _, problem in made if problem and site.point not in may_go]
    if problems:
        raise LockError('; '.join(problems))
    left_out = {site.point.name: problem for site, _, problem in made if problem}
    entries = tuple(entry for _, entry, problem in made if not problem)
    if not entries:
        why = '; '.join(f'{name}: {reason}' for name, reason in left_out.items())
        raise LockError(f'nothing to lock at {", ".join(wanted)}: {why}')
    if 'linear' in wanted:
        left_out.update(_left(model, trace))
    kept = tuple(site for site, _, problem in made if not problem)
    return Plan(Features.name, entries, left_out, kept, tuple(wanted), trace)


def complete(stamp: Stamp, model: nn.Module, trace: Trace | None = None) -> Stamp:
    """A stamp with the weights that carry its maps, which a model that was trained with the key has to tell.

    Raises:
        LockError: points that cannot be absorbed.
    """
    refuse_block_wise(entry.transform for entry in stamp.maps)
    if stamp.is_carried:
        return stamp
    trace = trace or Trace.by_dry_run(model)
    sites = resolve([entry.point for entry in stamp.maps], model, trace)
    maker = _Maker(model, trace, sites)
    found = [maker.entry(site, entry.transform, named=True) for site, entry in zip(sites, stamp.maps)]
    problems = [f'{entry.point}: {problem}' for entry, problem in found if problem]
    if problems:
        raise LockError('cannot be unlocked, and runs with its encryptors only: ' + '; '.join(problems))
    others = tuple(entry for entry in stamp.entries if not isinstance(entry, MapEntry))
    return replace(stamp, entries=(*(entry for entry, _ in found), *others))


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


class _Trial:
    """One model, plain and locked at some of a plan's points, run side by side."""

    def __init__(
        self, scheme: Scheme, bench: Bench, model: nn.Module, weights: Mapping[str, Any], key: Key, salt: bytes
    ) -> None:
        self.scheme, self.bench, self.weights, self.key, self.salt = scheme, bench, weights, key, salt
        self.model = copied(model)  # the weights may be its own
        self.model.load_state_dict(weights, strict=False)  # fitted already: only counters of batches may be missing
        self.plain = bench.run(self.model)

    def compare(self, plan: Plan, authorised: bool = True) -> Agreement:
        """The model locked by a plan, with or without the key, against the plain one."""
        tensors = dict(self.weights)
        self.scheme.carry(tensors, '', None, Bound(self.key, plan.to_stamp(self.key.id, self.salt)))
        self.model.load_state_dict(tensors, strict=False)
        maps = [(s, e, derive_map(self.key, self.salt, e)) for s, e in zip(plan.sites, plan.maps) if authorised]
        return agreement(self.plain, self.bench.run(self.model, maps))

    def culprits(self, plan: Plan) -> list[str]:
        """Which points make the model wrong, by halving: each run clears or suspects all of its part at once."""
        if not plan.entries or self.compare(plan).is_equal:
            return []
        if len(plan.entries) == 1:
            return [plan.maps[0].point]
        return [point for part in plan.halves() for point in self.culprits(part)]


def _not_the_plain_one(named: list[str], found: Agreement) -> str:
    if named:
        return (
            f'locked at {", ".join(named)}, the model with its key is not the plain one (relative error '
            f'{found.error:.1e}): its weight is used for more than the layer itself; leave it out. Nothing was written'
        )
    return (
        f'the locked model with its key is not the plain one (relative error {found.error:.1e}), and no layer alone is '
        'to blame; lock fewer points. Nothing was written'
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
        layers, problem = ([site.point.name], '') if site.point.side == 'in' else self._reading(site)
        if site.channels < 2:
            problem = SINGLE
        problem = problem or self._why_not(site, layers, lambda layer, _: self.weights.why_not(layer, site.channels))
        least = spec if named else normal_form('ChannelPermutation')  # which layers absorb that absorb nothing else
        for tried in () if problem else (spec, least):
            problem = self._why_not(site, layers, partial(why_not_linear, transform=tried))
            if not problem:
                spec = tried
                break
        names = dict.fromkeys(name for layer in layers for name in self.weights.of(module_of(self.model, layer)))
        return entry_at(site, spec, tuple(names)), problem

    def _why_not(self, site: Site, layers: list[str], why_not: Callable[[nn.Module, Site], str]) -> str:
        """What one of the layers, with what it reads, has against a map, in words."""
        for name in layers:
            why = why_not(module_of(self.model, name), self.trace.sites.get(Point('in', name), site))
            if why:
                return why if name == site.point.name else f'{name}, which reads it: {why}'
        return ''

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
        elif trace.sites[Point('in', name or ROOT)].channels < 2:
            left[name or ROOT] = SINGLE
    return left
