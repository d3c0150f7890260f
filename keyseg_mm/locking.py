"""Lock, rekey and unlock: a trained model's weights under a key, without training.

For an orthogonal channel map T in front of a linear layer W, ``(W T^-1)(T x) = W x``. So the locked weights are
``W T^-1``, which for an orthogonal T is T itself along W's input channels, and an authorised model, whose encryptors
compute ``T x``, gives what the plain one gave. Permutations and signs move and negate values and change no bit of them:
unlocking gives the plain weights back exactly. Rotations are computed in float64 and rounded once.

:func:`lock`, :func:`rekey` and :func:`unlock` are pure: they check everything first, and change nothing they are given.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, overload

import torch
from torch import Tensor, nn

from keyseg_mm.encryptor import derive_map, sign, verify
from keyseg_mm.errors import KeyMismatchError, LockError
from keyseg_mm.integrity import in_threads
from keyseg_mm.key import SecretKey
from keyseg_mm.lockplan import DEFAULT_POINTS, DEFAULT_TRANSFORM, complete, fit, plan_lock
from keyseg_mm.plan import SALT_BYTES, Entry, Plan, stamps_of
from keyseg_mm.points import Point, Trace, module_of
from keyseg_mm.transforms import ChannelMap

_BLOCK = 2**18  # values carried at once


def lock(
    state_dict: Mapping[str, Any],
    model: nn.Module,
    key: SecretKey,
    points: str | Iterable[str] = DEFAULT_POINTS,
    transform: str | dict[str, Any] = DEFAULT_TRANSFORM,
    salt: bytes | None = None,
    trace: Trace | None = None,
) -> dict[str, Any]:
    """Plain to protected.

    Args:
        state_dict: of the plain model.
        model: the plain model, with any weights; it is looked at, and stays as it is.
        key: the secret key.
        points, transform, trace: see :func:`plan_lock`.
        salt: 16 public bytes; by default fresh random ones.

    Returns:
        A new state_dict with the stamp. Entries that carry no transform are the same tensors as in ``state_dict``.

    Raises:
        LockError: it is protected already, does not fit the model, or points cannot be absorbed.
    """
    locked = fit(state_dict, model)
    lock_in_place(locked, plan_lock(model, points, transform, trace).entries, key, salt)
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
    """Protected to plain: a state_dict, or a live model in place (:func:`keyseg_mm.follow.unlock_model`).

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
        from keyseg_mm.follow import unlock_model  # which builds on this module

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


def lock_in_place(
    tensors: dict[str, Any], entries: tuple[Entry, ...], key: SecretKey, salt: bytes | None = None, own: bool = False
) -> Plan:
    """:func:`lock` for a dict that is the caller's to lose: each tensor is let go as it is replaced.

    With ``own`` the tensors' memory is the caller's to lose, too.
    """
    plan = Plan(key.id, _fresh(salt), entries)
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
        new = Plan(new_key.id, _fresh(salt), plan.entries)
        old_maps, new_maps = carried(key, plan), carried(new_key, new)
        both = _composed({name: (new_maps[name], old) for name, old in old_maps.items()})
        _carry_below(tensors, both, prefix, own)
        del tensors[prefix + plan.stamp_name]
        plans[prefix] = new
    for prefix, plan in plans.items():  # after all of them, since a model's MAC covers what its parts' stamps changed
        _stamp(tensors, prefix, new_key, plan)


def carried(key: SecretKey, plan: Plan) -> dict[str, ChannelMap]:
    """The secret map that each weight carries, by its name: that of its input, after that of the map it reads."""
    maps: dict[str, ChannelMap] = {}
    for entry in sorted(plan.entries, key=_reading_order):
        found = derive_map(key, plan.salt, entry)
        for name in entry.weights:
            maps[name] = found.compose(maps[name]) if name in maps else found
    return maps


def _composed(pairs: Mapping[str, tuple[ChannelMap, ChannelMap]]) -> dict[str, ChannelMap]:
    """From an old map to a new one, by name: one object where both are, as for names of one tensor."""
    made: dict[tuple[int, int], ChannelMap] = {}
    for new, old in pairs.values():
        if (id(new), id(old)) not in made:
            made[id(new), id(old)] = new.compose(old.inverse())
    return {name: made[id(new), id(old)] for name, (new, old) in pairs.items()}


def carry(cmap: ChannelMap, weight: Tensor, out: Tensor | None = None) -> Tensor:
    """``W T^-1`` for an orthogonal T: T along the input channels, dimension 1 of W.

    Args:
        cmap: T.
        weight: W, of two or more dimensions.
        out: takes the result, of the shape and dtype of W; may be W itself. By default a new tensor does.
    """
    weight = weight.detach()
    if out is None:
        return _carried(cmap, weight)
    rows = max(1, _BLOCK * len(weight) // max(1, weight.numel()))  # in blocks that stay in the processor's cache
    for source, target in zip(torch.split(weight, rows), torch.split(out.detach(), rows)):
        target.copy_(_carried(cmap, source))
    return out


def _carried(cmap: ChannelMap, weight: Tensor) -> Tensor:
    return cmap(weight, 1) if cmap.exact else cmap(weight.double(), 1).to(weight.dtype)


def carry_in_place(
    tensors: dict[str, Any], maps: Mapping[str, ChannelMap], prefix: str = '', into: Mapping[str, Tensor] | None = None
) -> None:
    """Carry maps into the weights of a dict that is the caller's to lose.

    All are checked before the first is changed. Names of one tensor stay names of one tensor.

    Args:
        tensors: the state_dict.
        maps: by the name of the weight, without the prefix.
        prefix: of the names in the state_dict.
        into: by name, without the prefix, tensors that take the results, which spares making new ones.

    Raises:
        LockError: a weight is missing, or has another number of input channels.
    """
    for name, cmap in maps.items():
        weight = tensors.get(prefix + name)
        if not isinstance(weight, Tensor) or weight.dim() < 2 or weight.shape[1] != cmap.channels:
            raise LockError(
                f'{prefix + name}: this checkpoint has no weight of {cmap.channels} input channels there, as its plan '
                'says; it is the wrong checkpoint for this model, or it was altered'
            )
    once: dict[tuple[int, int, torch.Size], list[str]] = {}  # names of one tensor with one map
    for name, cmap in maps.items():
        weight = tensors[prefix + name]
        once.setdefault((id(cmap), weight.data_ptr(), weight.shape), []).append(name)

    def work(names: list[str]) -> None:
        weight, target = tensors[prefix + names[0]], (into or {}).get(names[0])
        result = carry(maps[names[0]], weight, target if _takes(target, weight) else None)
        for name in names:
            tensors[prefix + name] = result

    in_threads(work, once.values())


def _carry_below(tensors: dict[str, Any], maps: Mapping[str, ChannelMap], prefix: str, own: bool) -> None:
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


def _fresh(salt: bytes | None) -> bytes:
    if salt is not None and len(salt) != SALT_BYTES:
        raise LockError(f'a salt is {SALT_BYTES} bytes ({2 * SALT_BYTES} hex digits)')
    return salt or os.urandom(SALT_BYTES)


def _reading_order(entry: Entry) -> tuple[bool, int]:
    """A map that leaves a module is met before those that enter layers, an outer layer's before an inner one's."""
    point = Point.parse(entry.point)
    return point.side == 'in', point.name.count('.')
