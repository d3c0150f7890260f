"""Protecting live models, and looking for what protects them.

Parameters, buffers and state_dict keys stay as they are; the model and its modules at encrypted points get a class of
the same name, derived from their own, see :mod:`keyseg_mm.runtime.gates`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from keyseg_mm.bind import Bound
from keyseg_mm.entries import Entry, MapEntry
from keyseg_mm.errors import LockError, PlanMismatchError, TransformError
from keyseg_mm.keys.identity import Key
from keyseg_mm.locking.places import entry_at
from keyseg_mm.locking.planning import complete
from keyseg_mm.locking.scheme import turn_weights
from keyseg_mm.maps import TRANSFORMS, normal_form
from keyseg_mm.maps.order import SINGLE
from keyseg_mm.model.points import ROOT
from keyseg_mm.model.sites import Site, Trace
from keyseg_mm.runtime.gates import add_gates, remove_gates
from keyseg_mm.runtime.protection import Protection, Rules, State
from keyseg_mm.runtime.witness import TestsOnly
from keyseg_mm.stamp import Stamp, fresh_salt

_STAMP_HOOKS = ('_state_dict_hooks', '_load_state_dict_pre_hooks')


def entries_at(
    sites: Sequence[Site], transform: str | Mapping[str, Any] = 'ChannelPermutation'
) -> tuple[MapEntry, ...]:
    """Entries of one transform at all sites.

    Args:
        sites: from :func:`keyseg_mm.model.sites.resolve`.
        transform: name or dict of a transform.

    Raises:
        TransformError: there is no such transform.
    """
    spec = normal_form(transform)
    return tuple(entry_at(site, spec) for site in sites)


def attach(
    model: nn.Module,
    key: Key,
    sites: Sequence[Site],
    entries: Sequence[Entry],
    *,
    salt: bytes | None = None,
    rules: Rules = Rules(),  # noqa: B008 - frozen
) -> Protection:
    """Encrypt the feature maps at the given sites of a live model, in every forward pass from now on.

    Args:
        model: any module; it is checked first and changed only if all is well.
        key: the secret key.
        sites: from :func:`keyseg_mm.model.sites.resolve`.
        entries: what is done there: one for each site, in the same order, as :func:`entries_at` makes them. Entries of
            images may follow, which only go into the stamp.
        salt: 16 public bytes; by default fresh random ones. A loaded checkpoint's salt takes their place.
        rules: what the model accepts as it is loaded.

    Returns:
        The protection; :func:`detach` takes it off again.

    Raises:
        PointError, TransformError: bad sites or transforms. The model is untouched.
        PlanMismatchError: the model is protected already, or entries and sites do not belong together.
        StampError: the salt is not 16 bytes.
    """
    stamp = Stamp(key.id, fresh_salt(salt), tuple(entries))
    there = [(str(site.point), site.channels) for site in sites]
    if there != [(entry.point, entry.channels) for entry in stamp.maps]:
        raise PlanMismatchError('one entry for each site, in the same order: see keyseg_mm.entries_at')
    _refuse_unfit(sites, stamp.maps)
    protection = _new(model, key, rules)
    protection.become_keyed(model, stamp, sites)
    return _watch(model, protection)


def await_checkpoint(model: nn.Module, key: Key, rules: Rules) -> Protection:
    """Let a model take its protection from the checkpoint that is loaded into it. Until then it does not run.

    Args:
        model: any module.
        key: the secret key.
        rules: with ``find_sites`` or ``unlock``.
    """
    protection = _new(model, key, rules)
    protection.wait(model)
    return _watch(model, protection)


def run_without_key(model: nn.Module) -> Protection:
    """Let a model run without a key, on purpose: a stamp that is loaded is no error, and nothing is written of it."""
    protection = _new(model, None, Rules(deliberate=True))
    add_gates(model, [(ROOT, TestsOnly())])
    return _watch(model, protection)


def detach(model: nn.Module) -> int:
    """Take all protections off a model and off every module in it; afterwards it is the plain model.

    Returns:
        How many encryptors and protections were taken off.
    """
    found = protections(model)
    removed = sum(len(protection.encryptors) for protection in found)
    remove_gates(model)
    for module in model.modules():
        for hooks in (getattr(module, table) for table in _STAMP_HOOKS):
            for handle in [handle for handle, hook in hooks.items() if _owner(hook) is not None]:
                del hooks[handle]
    return removed + len(found)


def protection_of(model: nn.Module) -> Protection | None:
    """The protection of exactly this module, or None."""
    return next((found for hook in model._state_dict_hooks.values() if (found := _owner(hook)) is not None), None)


def protected_modules(model: nn.Module) -> list[tuple[nn.Module, Protection]]:
    """The modules in a model that have a protection, the model itself among them, with it."""
    return [(module, found) for module in model.modules() if (found := protection_of(module)) is not None]


def protections(model: nn.Module) -> list[Protection]:
    """All protections in a model, those of its parts too."""
    return [protection for _, protection in protected_modules(model)]


def unlock_model(model: nn.Module, trace: Trace | None = None) -> None:
    """Turn a protected live model into the plain one, in place: plain weights, no encryptors, no stamp.

    Args:
        model: with its checkpoint loaded; locked, or trained with the key.
        trace: which points fire in it; by default found by a dry run, where the stamp does not know the weights.

    Raises:
        LockError: it is not protected, has no key, or points cannot be absorbed. The model stays as it is.
        NotFiredError: it is not what its stamp says, or has no checkpoint yet.
    """
    owners = protected_modules(model)
    if not owners:
        raise LockError(f'this {type(model).__name__} is not protected; there is nothing to unlock')
    changed = []
    for module, protection in owners:
        if protection.features is None or protection.rules.deliberate:
            raise LockError('this model runs without its key, on purpose; build it with the right one to unlock it')
        protection.check(module)
        if protection.state is State.KEYED:
            stamp = complete(protection.stamp, module, trace if module is model else None)
            changed.append((module, Bound(protection.features, stamp).weight_maps()))
    for module, maps in changed:
        turn_weights(module, maps, {})
    detach(model)


def _new(model: nn.Module, key: Key | None, rules: Rules) -> Protection:
    if protection_of(model) is not None:
        raise PlanMismatchError(f'this {type(model).__name__} is protected already; detach() it first')
    return Protection(key, rules)


def _watch(model: Any, protection: Protection) -> Protection:
    """Let a protection see what is saved of a model and loaded into it."""
    # The public spellings of these two came with torch 2.5; the private ones have existed all along.
    model._register_state_dict_hook(protection.put_stamp)
    model._register_load_state_dict_pre_hook(protection.take_stamp, with_module=True)
    return protection


def _owner(hook: Any) -> Protection | None:
    bound = getattr(hook, 'hook', hook)  # torch wraps some hooks in an object that holds them as .hook
    owner = getattr(bound, '__self__', None)
    return owner if isinstance(owner, Protection) else None


def _refuse_unfit(sites: Sequence[Site], entries: Sequence[MapEntry]) -> None:
    """Refuse sites whose maps do not suit their transform, all with the same reason together."""
    unfit: dict[str, list[str]] = {}
    for site, entry in zip(sites, entries):
        params = dict(entry.transform)
        kind = TRANSFORMS[params.pop('type')]
        why = kind.why_not(site.dim, len(site.shape))
        why = why or (SINGLE if kind.values(site.channels, **params) < 2 else '')
        if why:
            unfit.setdefault(why, []).append(str(site.point))
    if unfit:
        raise TransformError('; '.join(f'{", ".join(points)}: {why}' for why, points in unfit.items()))
