"""Lock, rekey and unlock: a trained model's weights under a key, without training, by whatever scheme.

:func:`lock`, :func:`rekey` and :func:`unlock` are pure: they check everything first, and change nothing they are given.
Those that end in ``_in_place`` replace the values of the dict that they are given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from keyseg_mm.bind import Bound, refuse_unknown, stamp_tensor
from keyseg_mm.entries import ImageEntry
from keyseg_mm.errors import LockError
from keyseg_mm.keys.identity import Key
from keyseg_mm.keys.key import FeatureSecret
from keyseg_mm.locking.bench import bench_for
from keyseg_mm.locking.fitting import fit
from keyseg_mm.locking.parts import fit_to_file
from keyseg_mm.locking.plan import Plan
from keyseg_mm.locking.planning import DEFAULT_TRANSFORM, complete, refuse_block_wise
from keyseg_mm.locking.scheme import SCHEMES, Scheme, scheme_of
from keyseg_mm.model.sites import Trace
from keyseg_mm.seal.sections import sealed_stamp, unseal_section
from keyseg_mm.stamp import Stamp, below, fresh_salt, stamps_of
from keyseg_mm.wrapping import memory_stamp, open_envelope


def lock(
    state_dict: Mapping[str, Any],
    model: nn.Module,
    key: Key,
    points: str | Iterable[str] | None = None,
    transform: str | Mapping[str, Any] = DEFAULT_TRANSFORM,
    salt: bytes | None = None,
    trace: Trace | None = None,
    scheme: str = 'features',
    **options: Any,
) -> dict[str, Any]:
    """Plain to protected.

    Args:
        state_dict: of the plain model.
        model: the plain model, with any weights; it is looked at and run, and stays as it is.
        key: the secret key.
        points, transform, trace: see :func:`keyseg_mm.locking.planning.plan_lock`; by default all layers.
        salt: 16 public bytes; by default fresh random ones.
        scheme: another scheme than that of feature maps: ``'tensors'``, ``'selective'`` or ``'patches'``. It takes no
            points and no transform.
        options: of that scheme.

    Returns:
        A new state_dict with the stamp. Entries that are not changed are the same tensors as in ``state_dict``.

    Raises:
        LockError: it is protected already, does not fit the model, points cannot be absorbed, or the proof fails: with
            the key it would not be the plain model. Points of a preset that fail it are left out.
    """
    if scheme not in SCHEMES:
        raise LockError(f'no scheme {scheme!r}; there are {", ".join(SCHEMES)}')
    if scheme == 'features':
        options.update(transform=transform, trace=trace, **({} if points is None else {'points': points}))
    elif points is not None or transform != DEFAULT_TRANSFORM:
        raise LockError(f'scheme {scheme!r} takes no points and no transform')
    locked = fit(state_dict, model)
    plan, salt = SCHEMES[scheme].plan(model, locked, **options), fresh_salt(salt)
    lock_in_place(locked, proved(plan, model, locked, key, salt), key, salt)
    return locked


def proved(plan: Plan, model: nn.Module, weights: Mapping[str, Any], key: Key, salt: bytes) -> Plan:
    """A plan that was proved, see :meth:`keyseg_mm.locking.scheme.Scheme.prove`, with the bench that there is.

    Raises:
        LockError: with the key the model would not be the plain one, or without it would; or nobody can run it.
    """
    scheme, bench = SCHEMES[plan.scheme], bench_for(plan.trace)
    if scheme.is_exact:
        return plan
    if bench is None:
        raise LockError(
            f'how this {type(model).__name__} is run is not known, and nothing can be proved of its lock: give a '
            "trace, as trace=Trace.of(model, {'test': lambda: model(inputs)})"
        )
    return scheme.prove(bench, model, weights, plan, key, salt).plan


def unlock(
    state_dict: Mapping[str, Any],
    key: Key,
    model: nn.Module | None = None,
    trace: Trace | None = None,
    check: bool = True,
) -> dict[str, Any]:
    """Protected to plain. For a live model: :func:`keyseg_mm.unlock_model`.

    Args:
        state_dict: of the protected model, with its stamp.
        key: its key.
        model: the plain model; needed where the model was trained with the key, to find the weights that read the
            encrypted maps.
        trace: see :func:`keyseg_mm.locking.planning.plan_lock`.
        check: refuse weights that are only signed and were altered; sealed ones are always checked.

    Returns:
        A new state_dict, without a stamp, or, where the model was trained on encrypted images, with a stamp of those.

    Raises:
        KeyMismatchError: another key's.
        IntegrityError: it was altered.
        LockError: no stamp, or points that cannot be absorbed.
    """
    plain = dict(state_dict)
    unlock_in_place(plain, key, model, trace, check)
    return plain


def rekey(
    state_dict: Mapping[str, Any],
    key: Key,
    new_key: Key,
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


def lock_in_place(tensors: dict[str, Any], plan: Plan, key: Key, salt: bytes | None = None, own: bool = False) -> Stamp:
    """:func:`lock`, by a plan, of a dict whose values are replaced; ``own``: the tensors' memory is overwritten too.

    Returns:
        The stamp.
    """
    stamp = plan.to_stamp(key.id, fresh_salt(salt))
    features = key.features(stamp.salt)
    SCHEMES[plan.scheme].carry(tensors, '', None, Bound(features, stamp), own)
    return _put(tensors, '', key, stamp, features)


def lock_again(tensors: dict[str, Any], prefix: str, key: Key, features: FeatureSecret, stamp: Stamp) -> None:
    """Give plain weights the maps and the stamp that they had, or that was planned; values of the dict are replaced.

    Args:
        tensors: a state_dict.
        prefix: of the model's names in it.
        key: the key.
        features: what the maps are derived from.
        stamp: with the weights that carry its maps.
    """
    if _is_turned(stamp):
        _scheme(stamp).carry(tensors, prefix, None, Bound(features, stamp))
    _put(tensors, prefix, key, stamp, features)


def unlock_in_place(
    tensors: dict[str, Any],
    key: Key,
    model: nn.Module | None = None,
    trace: Trace | None = None,
    check: bool = True,
    own: bool = False,
) -> None:
    """:func:`unlock` of a dict whose values are replaced; ``own`` as of :func:`lock_in_place`."""
    for prefix, (stamp, features) in _opened(tensors, key, model, trace, check).items():
        if _is_turned(stamp):
            _scheme(stamp).carry(tensors, prefix, Bound(features, stamp), None, own)
        del tensors[prefix + stamp.name]
        if stamp.images:
            _put(tensors, prefix, key, replace(stamp, entries=stamp.images), features)


def rekey_in_place(
    tensors: dict[str, Any],
    key: Key,
    new_key: Key,
    model: nn.Module | None = None,
    salt: bytes | None = None,
    trace: Trace | None = None,
    check: bool = True,
    own: bool = False,
    change: Callable[[dict[str, Any]], None] | None = None,
) -> None:
    """:func:`rekey` of a dict whose values are replaced; ``own`` as of :func:`lock_in_place`.

    Args:
        change: changes the plain weights of the dict a little in between; for that they come into being.
    """
    stamps = _opened(tensors, key, model, trace, check)
    if any(stamp.images for stamp, _ in stamps.values()):
        raise LockError('this model was trained on images encrypted with its key, and learnt to read those alone')
    if change is not None:
        for prefix, (stamp, before) in stamps.items():
            _scheme(stamp).carry(tensors, prefix, Bound(before, stamp), None, own)
        change(tensors)
    for prefix, (stamp, before) in stamps.items():
        new = Stamp(new_key.id, fresh_salt(salt), stamp.entries, fingerprint=stamp.fingerprint)
        new = new if change is None else _scheme(stamp).fitted(new, tensors, prefix)
        features = new_key.features(new.salt)
        _scheme(stamp).carry(
            tensors, prefix, Bound(before, stamp) if change is None else None, Bound(features, new), own
        )
        del tensors[prefix + stamp.name]
        _put(tensors, prefix, new_key, new, features)


def _put(tensors: dict[str, Any], prefix: str, key: Key, stamp: Stamp, features: FeatureSecret) -> Stamp:
    """Put a stamp into a state_dict."""
    stamp = memory_stamp(key, stamp, features)
    tensors[prefix + stamp.name] = stamp_tensor(stamp)
    return stamp


def _is_turned(stamp: Stamp) -> bool:
    """Whether there is more to a stamp than images, which turn no weights."""
    return len(stamp.images) < len(stamp.entries)


def _scheme(stamp: Stamp) -> Scheme:
    """The scheme of a stamp; images are the data pipeline's."""
    return scheme_of(next(entry for entry in stamp.entries if not isinstance(entry, ImageEntry)))


def _opened(
    tensors: dict[str, Any], key: Key, model: nn.Module | None, trace: Trace | None, check: bool
) -> dict[str, tuple[Stamp, FeatureSecret]]:
    """The stamps of a protected state_dict and what their tables are derived from, by the prefix of their names.

    Those of parts come before those of the whole. A seal is taken off first; there may be no stamp left then.
    """
    was_sealed = sealed_stamp(tensors) is not None
    if was_sealed:
        bare = unseal_section(key, tensors, verify=check)
        tensors.clear()
        tensors.update(bare)
    stamps = stamps_of(tensors)
    if was_sealed and not stamps:
        return {}
    if not stamps:
        raise LockError('this checkpoint is plain: it carries no stamp, and there is nothing to unlock')
    found: dict[str, tuple[Stamp, FeatureSecret]] = {}
    for where, stamp in sorted(stamps.items(), key=lambda item: -len(item[0])):
        prefix = where + '.' if where else ''
        features = open_envelope(key, stamp, check).features
        stamp = fit_to_file(stamp, below(tensors, prefix))
        refuse_unknown(stamp)
        refuse_block_wise(entry.transform for entry in stamp.maps)
        if not stamp.is_carried:
            if model is None:
                raise LockError(
                    'this model was trained with its key, so its stamp does not tell which weights read the encrypted '
                    'maps; give its config too (--config), or model=... from Python'
                )
            stamp = complete(stamp, _part(model, where, tensors), None if where else trace)
        found[prefix] = stamp, features
    if not any(map(_is_turned, stamps.values())):
        raise LockError('this model was trained on encrypted images: no weight can be turned so that it reads plain')
    return found


def _part(model: nn.Module, where: str, tensors: Mapping[str, Any]) -> nn.Module:
    """The part of a model that a stamp is of, by where that was found; tensors may be those of a data-parallel run."""
    names = where.split('.') if where else []
    if names[:1] == ['module'] and all(name.startswith('module.') for name in tensors):
        names = names[1:]
    try:
        return model.get_submodule('.'.join(names))
    except AttributeError:
        raise LockError(f'this checkpoint has a stamp of {where}, and the model of this config no such part') from None
