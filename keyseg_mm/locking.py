"""Lock, rekey and unlock: a trained model's weights under a key, without training.

For an orthogonal channel map T in front of a linear layer W, ``(W T^-1)(T x) = W x``. So the locked weights are
``W T^-1``, which for an orthogonal T is T itself along W's input channels, and an authorised model, whose encryptors
compute ``T x``, gives what the plain one gave. Permutations and signs move and negate values and change no bit of them:
unlocking gives the plain weights back exactly. Rotations are computed in float64 and rounded once.

Weight transforms (:mod:`keyseg_mm.weights`) put the values of a tensor into a secret order instead, and change no bit
either. What they lock has to be unlocked before it runs.

:func:`lock`, :func:`rekey` and :func:`unlock` are pure: they check everything first, and change nothing they are given.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, overload

import torch
from torch import Tensor, nn

from keyseg_mm.bind import derive_channel_map, derive_order, sign, verify
from keyseg_mm.errors import KeyMismatchError, LockError
from keyseg_mm.keys.key import SecretKey
from keyseg_mm.lockplan import DEFAULT_POINTS, DEFAULT_TRANSFORM, LockPlan, complete, fit, plan_lock, refuse_block_wise
from keyseg_mm.mac import in_threads
from keyseg_mm.maps import ChannelMap
from keyseg_mm.maps.order import ValueOrder, WeightMap
from keyseg_mm.model.points import Point
from keyseg_mm.model.sites import Trace, module_of
from keyseg_mm.stamp import SALT_BYTES, Entry, Plan, stamps_of
from keyseg_mm.weightplan import WeightPlan, plan_weights
from keyseg_mm.weights import is_weight_transform


def lock(
    state_dict: Mapping[str, Any],
    model: nn.Module,
    key: SecretKey,
    points: str | Iterable[str] | None = None,
    transform: str | dict[str, Any] = DEFAULT_TRANSFORM,
    salt: bytes | None = None,
    trace: Trace | None = None,
    scores: Mapping[str, Tensor] | None = None,
) -> dict[str, Any]:
    """Plain to protected.

    Args:
        state_dict: of the plain model.
        model: the plain model, with any weights; it is looked at, and stays as it is.
        key: the secret key.
        points, transform, trace: see :func:`plan_lock`; by default all layers. A weight transform,
            ``'TensorPermutation'`` or ``dict(type='SelectiveEncryption', share=...)``, takes no points.
        salt: 16 public bytes; by default fresh random ones.
        scores: see :func:`keyseg_mm.weightplan.plan_weights`.

    Returns:
        A new state_dict with the stamp. Entries that carry no transform are the same tensors as in ``state_dict``.

    Raises:
        LockError: it is protected already, does not fit the model, or points cannot be absorbed.
    """
    locked = fit(state_dict, model)
    planned: LockPlan | WeightPlan
    if is_weight_transform(transform):
        if points is not None:
            raise LockError(f'{transform} encrypts weights, wherever they are used, and takes no points')
        planned = plan_weights(model, locked, transform, scores)
    else:
        planned = plan_lock(model, DEFAULT_POINTS if points is None else points, transform, trace)
    lock_in_place(locked, planned.to_plan(key.id, fresh_salt(salt)), key)
    return locked


@overload
def unlock(state_dict: nn.Module) -> None: ...
@overload
def unlock(
    state_dict: Mapping[str, Any],
    key: SecretKey,
    model: nn.Module | None = None,
    trace: Trace | None = None,
    check: bool = True,
) -> dict[str, Any]: ...
def unlock(
    state_dict: Mapping[str, Any] | nn.Module,
    key: SecretKey | None = None,
    model: nn.Module | None = None,
    trace: Trace | None = None,
    check: bool = True,
) -> dict[str, Any] | None:
    """Protected to plain: a state_dict, or a live model in place (:func:`keyseg_mm.runtime.follow.unlock_model`).

    Args:
        state_dict: of the protected model, with its stamp; or the live model itself, which has its key.
        key: its key.
        model: the plain model; needed where the model was trained with the key, to find the weights that read the
            encrypted maps.
        trace: see :func:`plan_lock`.
        check: check the MAC.

    Returns:
        A new state_dict, without a stamp.

    Raises:
        KeyMismatchError: another key's.
        IntegrityError: the MAC does not fit.
        LockError: no stamp, or points that cannot be absorbed.
    """
    if isinstance(state_dict, nn.Module):
        from keyseg_mm.runtime.follow import unlock_model  # which builds on this module

        unlock_model(state_dict)
        return None
    if key is None:
        raise LockError('unlock a state_dict with its key')
    plain = dict(state_dict)
    unlock_in_place(plain, key, model, trace, check)
    return plain


def rekey(
    state_dict: Mapping[str, Any],
    key: SecretKey,
    new_key: SecretKey,
    model: nn.Module | None = None,
    salt: bytes | None = None,
    trace: Trace | None = None,
    check: bool = True,
) -> dict[str, Any]:
    """From one key to another, in one step: the plain weights never come into being.

    Args and errors as of :func:`unlock`, and:

    Args:
        new_key: the key to come.
        salt: 16 public bytes; by default fresh random ones.
    """
    changed = dict(state_dict)
    rekey_in_place(changed, key, new_key, model, salt, trace, check)
    return changed


def lock_in_place(tensors: dict[str, Any], plan: Plan, key: SecretKey, own: bool = False) -> Plan:
    """:func:`lock` for a dict that is the caller's to lose: each tensor is let go as it is replaced.

    With ``own`` the tensors' memory is the caller's to lose, too.

    Returns:
        The plan with its MAC, as the stamp has it.
    """
    _carry_below(tensors, carried(key, plan), '', own)
    return _stamp(tensors, '', key, plan)


def unlock_in_place(
    tensors: dict[str, Any],
    key: SecretKey,
    model: nn.Module | None,
    trace: Trace | None,
    check: bool,
    own: bool = False,
) -> None:
    """:func:`unlock` for a dict that is the caller's to lose; ``own`` as of :func:`lock_in_place`."""
    for prefix, plan in _checked(tensors, key, model, trace, check).items():
        _carry_below(tensors, {n: m.inverse() for n, m in carried(key, plan).items()}, prefix, own)
        del tensors[prefix + plan.stamp_name]


def rekey_in_place(
    tensors: dict[str, Any],
    key: SecretKey,
    new_key: SecretKey,
    model: nn.Module | None,
    salt: bytes | None,
    trace: Trace | None,
    check: bool,
    own: bool = False,
) -> None:
    """:func:`rekey` for a dict that is the caller's to lose; ``own`` as of :func:`lock_in_place`."""
    plans = _checked(tensors, key, model, trace, check)
    for prefix, plan in plans.items():
        new = replace(plan, key_id=new_key.id, salt=fresh_salt(salt), mac='')
        _carry_below(tensors, _composed(carried(key, plan), carried(new_key, new)), prefix, own)
        del tensors[prefix + plan.stamp_name]
        plans[prefix] = new
    for prefix, plan in plans.items():  # after all of them, since a model's MAC covers what its parts' stamps changed
        _stamp(tensors, prefix, new_key, plan)


def carried(key: SecretKey, plan: Plan) -> dict[str, WeightMap]:
    """The secret map that each weight carries, by its name: that of its input, after that of the map it reads."""
    maps: dict[str, ChannelMap] = {}
    for entry in sorted(plan.entries, key=_reading_order):
        found = derive_channel_map(key, plan.salt, entry)
        for name in entry.weights:
            maps[name] = found.compose(maps[name]) if name in maps else found
    orders: dict[str, ValueOrder] = {}
    for tensor in plan.tensors:
        order = ValueOrder(tensor.count, (partial(derive_order, key, plan.salt, tensor), False))
        orders.update(dict.fromkeys(tensor.names, order))
    return {**maps, **orders}


def carry_in_place(
    tensors: dict[str, Any], maps: Mapping[str, WeightMap], prefix: str = '', into: Mapping[str, Tensor] | None = None
) -> None:
    """Carry maps into the weights of a dict that is the caller's to lose.

    All are checked before the first is changed. Names of one tensor stay names of one tensor.

    Args:
        tensors: the state_dict.
        maps: by the name of the weight, without the prefix.
        prefix: of the names in the state_dict.
        into: by name, without the prefix, tensors that take the results, which spares making new ones.

    Raises:
        LockError: a weight is missing, or no such weight as its plan says.
    """
    for name, cmap in maps.items():
        wanted = cmap.misfit(tensors.get(prefix + name))
        if wanted:
            raise LockError(
                f'{prefix + name}: this checkpoint has no {wanted} there, as its plan says; it is the wrong checkpoint '
                'for this model, or it was altered'
            )
    once: dict[tuple[int, int, torch.Size], list[str]] = {}  # names of one tensor with one map
    for name, cmap in maps.items():
        weight = tensors[prefix + name]
        once.setdefault((id(cmap), weight.data_ptr(), weight.shape), []).append(name)

    def work(names: list[str]) -> None:
        weight, target = tensors[prefix + names[0]], (into or {}).get(names[0])
        result = maps[names[0]].carry(weight, target if _takes(target, weight) else None)
        for name in names:
            tensors[prefix + name] = result

    largest_first = sorted(once.values(), key=lambda names: -tensors[prefix + names[0]].numel())  # none late and alone
    in_threads(work, largest_first)


def _carry_below(tensors: dict[str, Any], maps: Mapping[str, WeightMap], prefix: str, own: bool) -> None:
    """:func:`carry_in_place`, overwriting the weights where their memory may be lost and no other entry uses it."""
    used = Counter(t.untyped_storage().data_ptr() for t in tensors.values() if own and isinstance(t, Tensor))
    found = {name: tensors[prefix + name] for name in maps if isinstance(tensors.get(prefix + name), Tensor)}
    alone = {name: t for name, t in found.items() if used[t.untyped_storage().data_ptr()] == 1}
    carry_in_place(tensors, maps, prefix, alone)


def _takes(target: Tensor | None, weight: Tensor) -> bool:
    """Whether a tensor can take what is carried into a weight, bit for bit."""
    if target is None or target.shape != weight.shape:
        return False
    return (target.dtype, target.device, target.layout) == (weight.dtype, weight.device, weight.layout)


def _checked(
    tensors: Mapping[str, Any], key: SecretKey, model: nn.Module | None, trace: Trace | None, check: bool
) -> dict[str, Plan]:
    """The plans of a protected state_dict by the prefix of their names, those of parts before those of the whole."""
    stamps = stamps_of(tensors)
    if not stamps:
        raise LockError('this checkpoint is plain: it carries no stamp, and there is nothing to unlock')
    plans = {}
    for where, plan in sorted(stamps.items(), key=lambda item: -len(item[0])):
        prefix = where + '.' if where else ''
        if plan.key_id != key.id:
            raise KeyMismatchError(
                f'this checkpoint is protected with key {plan.key_id}, and the key given is {key.id}'
            )
        if check:
            verify(key, plan, {n[len(prefix) :]: v for n, v in tensors.items() if n.startswith(prefix)})
        refuse_block_wise(entry.transform for entry in plan.entries)
        if not all(entry.weights for entry in plan.entries):
            if model is None:
                raise LockError(
                    'this model was trained with its key, so its stamp does not tell which weights read the encrypted '
                    'maps; give its config too (--config), or model=... from Python'
                )
            plan = complete(plan, module_of(model, where) if where else model, None if where else trace)
        plans[prefix] = plan
    return plans


def _stamp(tensors: dict[str, Any], prefix: str, key: SecretKey, plan: Plan) -> Plan:
    below = {n[len(prefix) :]: v for n, v in tensors.items() if n.startswith(prefix)}
    plan = sign(key, plan, below)
    tensors[prefix + plan.stamp_name] = plan.to_tensor()
    return plan


def _composed(old: Mapping[str, WeightMap], new: Mapping[str, WeightMap]) -> dict[str, WeightMap]:
    """From the old maps to the new ones in one step; names that had one map have one."""
    made: dict[tuple[int, int], WeightMap] = {}
    for name, before in old.items():
        pair = id(before), id(new[name])
        if pair not in made:
            made[pair] = new[name].compose(before.inverse())
    return {name: made[id(before), id(new[name])] for name, before in old.items()}


def fresh_salt(salt: bytes | None = None) -> bytes:
    """A salt that was given, checked, or a random one."""
    if salt is not None and len(salt) != SALT_BYTES:
        raise LockError(f'a salt is {SALT_BYTES} bytes ({2 * SALT_BYTES} hex digits)')
    return salt or os.urandom(SALT_BYTES)


def _reading_order(entry: Entry) -> tuple[bool, int]:
    """A map that leaves a module is met before those that enter layers, an outer layer's before an inner one's."""
    point = Point.parse(entry.point)
    return point.side == 'in', point.name.count('.')
