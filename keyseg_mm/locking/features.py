"""The scheme of encrypted feature maps: orthogonal maps of the channels, carried into the layers that read them.

For an orthogonal channel map T in front of a linear layer W, ``(W T^-1)(T x) = W x``. So the locked weights are
``W T^-1``, which for an orthogonal T is T itself along W's input channels, and an authorised model, whose encryptors
compute ``T x``, gives what the plain one gave. Permutations and signs move and negate values and change no bit of them:
unlocking gives the plain weights back exactly. Rotations are computed in float64 and rounded once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import nn

from keyseg_mm.bind import Bound, derive_map
from keyseg_mm.entries import SALT_BYTES, Entry, MapEntry
from keyseg_mm.errors import LockError
from keyseg_mm.keys.identity import Key
from keyseg_mm.keys.key import wrong_key
from keyseg_mm.locking.plan import Plan
from keyseg_mm.locking.planning import SCHEME, plan_lock
from keyseg_mm.locking.proof import Agreement, Bench, Proof, agreement
from keyseg_mm.locking.scheme import Scheme, change_maps, register
from keyseg_mm.maps import TRANSFORMS
from keyseg_mm.model.passes import copied


@register
class Features(Scheme):
    """Feature maps are encrypted; the model runs with its encryptors, or opened."""

    name = SCHEME
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
        plan, with_key = trial.exact(plan)
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


def exact_part(plan: Plan, bench: Bench, model: nn.Module) -> Plan:
    """What of a plan the weights of a model carry exactly, whatever they are, by a trial with a key that anybody knows.

    Args:
        plan: of feature maps.
        bench: how models are run.
        model: plain, with weights that are drawn; it stays as it is.

    Raises:
        LockError: a point that was asked for by name makes the model another one.
    """
    weights = {name: value.detach() for name, value in model.state_dict().items()}
    return _Trial(Features(), bench, model, weights, wrong_key('trial'), bytes(SALT_BYTES)).exact(plan)[0]


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

    def exact(self, plan: Plan) -> tuple[Plan, Agreement]:
        """The plan less those points of a preset that make the model wrong, and how far it is the plain one then."""
        with_key = self.compare(plan)
        if with_key.is_equal:
            return plan, with_key
        blame = self.culprits(plan)
        named = [point for point in blame if point in plan.named]
        if named or not blame:
            raise LockError(_not_the_plain_one(named, with_key))
        plan = plan.without(blame, 'its weight is used for more than the layer itself (found by the proof)')
        with_key = self.compare(plan)
        if not with_key.is_equal:
            raise LockError(_not_the_plain_one([], with_key))
        return plan, with_key

    def culprits(self, plan: Plan) -> list[str]:
        """Which points make the model wrong, by halving: each run clears or suspects all of its part at once."""
        if not plan.entries or self.compare(plan).is_equal:
            return []
        if len(plan.entries) == 1:
            return [plan.maps[0].point]
        return [point for part in plan.halves() for point in self.culprits(part)]


def _not_the_plain_one(named: list[str], found: Agreement) -> str:
    loss = '' if math.isnan(found.loss_error) else f', of a loss {found.loss_error:.1e}'
    wrong = f'the model with its key is not the plain one (relative error {found.error:.1e}{loss})'
    if named:
        return (
            f'locked at {", ".join(named)}, {wrong}: its weight is used for more than the layer itself; leave it out. '
            'Nothing was written'
        )
    return f'locked, {wrong}, and no layer alone is to blame; lock fewer points. Nothing was written'
