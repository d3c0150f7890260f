"""``Keyed``: builds any registered module of the host, attaches the encryptors, and returns it."""

from __future__ import annotations

import functools
import logging
from typing import Any

from mmengine.dist import broadcast_object_list, is_distributed
from mmengine.registry import DefaultScope
from torch import nn

from keyseg_mm.entries import MapEntry
from keyseg_mm.envelope import SEALED, SIGNED
from keyseg_mm.errors import KeysegError
from keyseg_mm.keys.identity import Key, Recipient, read_recipient
from keyseg_mm.keys.locator import LocatedKey, locate
from keyseg_mm.locking.places import sites_of_stamp
from keyseg_mm.locking.plan import Plan
from keyseg_mm.locking.planning import DEFAULT_POINTS, DEFAULT_TRANSFORM, plan_lock, plan_training
from keyseg_mm.maps import normal_form
from keyseg_mm.mm.dryrun import trace_module
from keyseg_mm.mm.initialising import carry_at_init
from keyseg_mm.mm.proving import prove_exact
from keyseg_mm.mm.registry import MODELS
from keyseg_mm.model.points import PRESETS
from keyseg_mm.runtime.attach import attach, await_checkpoint, run_without_key
from keyseg_mm.runtime.protection import Rules
from keyseg_mm.stamp import Stamp, fresh_salt, parse_salt

logger = logging.getLogger('keyseg_mm')

_OPTIONS = ('key', 'points', 'transform', 'salt', 'start', 'runtime', 'verify', 'recipients', 'seal')
FROM_CHECKPOINT = 'checkpoint'  # as points: those of the stamp that is loaded


@MODELS.register_module()
def Keyed(of: Any, protection: dict[str, Any], **kwargs: Any) -> nn.Module:  # noqa: N802 - configs name it as a type
    """Build the module named by ``of`` with all other arguments, and protect it.

    In a config: ``model=dict(type='keyseg_mm.Keyed', of='EncoderDecoder', protection=dict(...), ...)``, or the same
    around a backbone, neck or head. The result is an ordinary ``of``: its class, its state_dict keys, and the stamp.

    Args:
        of: registered name or class of the module to build.
        protection: a dict of

            - ``key``: key locator, see :mod:`keyseg_mm.keys.locator`.
            - ``points``: an encryption point or preset, or a list of them; by default ``linear``, the
              input of every layer that can carry a map. ``checkpoint`` takes points and transforms from the checkpoint
              that is loaded, as for a locked one.
            - ``transform``: name or dict of a transform; by default ``SignedChannelPermutation``. The paper's way is
              ``stages`` with ``ChannelPermutation``.
            - ``salt``: public, 32 hex digits; by default the loaded checkpoint's, or a fresh one, which all models
              that one process builds with the same key and points share: a student and its teacher, say.
            - ``start``: ``plain`` lets ``load_from`` name a plain checkpoint: the maps are carried into its weights as
              they are loaded, exactly, and the training goes on from there. Nothing that works without the key is left.
            - ``runtime``: ``keyed``, with encryptors at the points; or ``plain``: the model runs, and trains, without
              encryptors, at the plain model's speed; a protected checkpoint is opened as it is loaded. What is written
              carries the maps and is sealed, as with ``keyed``: by the law of :mod:`keyseg_mm.runtime.coordinates` it
              is the same model. Weights have to carry all maps exactly then.
            - ``recipients``: who else can open the files that are written, besides the key: the texts of their
              recipients, or ``file:PATH``; see ``keyseg keygen --identity``.
            - ``seal``: by default True: what is written is sealed. False, for research: its weights stay in the open,
              behind the maps, and are signed.
            - ``verify``: refuse weights that are only signed, and were altered; by default True.

    Raises:
        KeysegError: a bad key or option, before anything is built; bad points, before the built module is changed.
    """
    options = check_options(protection)
    located = locate(options.get('key'))
    module: nn.Module = _host_registry().build({'type': of, **kwargs})
    return protect(module, located, options)


def protect(module: nn.Module, located: LocatedKey, options: dict[str, Any]) -> nn.Module:
    """Attach encryptors to a built module of the host; see :func:`Keyed` for the options."""
    if located.key is None:
        logger.warning(
            "key='none': this %s runs UNAUTHORISED, its feature maps are not encrypted; a protected checkpoint will "
            'give rubbish, as asked',
            type(module).__name__,
        )
        run_without_key(module)
        return module
    if located.deliberate:
        logger.warning(
            'a wrong key, %s, on purpose: results are those of an unauthorised user, as asked', located.key.id
        )
    opens, follows = options.get('runtime') == 'plain', options.get('points') == FROM_CHECKPOINT
    key: Key = located.key

    def stamp_for(plan: Plan) -> Stamp:
        salt = salt_of_run(key.id, plan.maps) if options.get('salt') is None else parse_salt(options['salt'])
        return plan.to_stamp(key.id, salt)

    rules = Rules(
        deliberate=located.deliberate,
        takes_plain=options.get('start') == 'plain',
        fixed_salt=options.get('salt') is not None,
        verify=bool(options.get('verify', True)),
        find_sites=sites_of_stamp if opens or follows else None,
        unlock=opens,
        plan=(lambda model: stamp_for(_plan(model, options))) if opens and not follows else None,
        recipients=_recipients(options.get('recipients')),
        mode=SEALED if options.get('seal', True) else SIGNED,
        named=tuple(point for point in _listed(options.get('points')) if point not in PRESETS),
    )
    if opens or follows:
        await_checkpoint(module, key, rules)
    else:
        plan = _plan(module, options)
        attach(module, key, plan.sites, plan.entries, salt=stamp_for(plan).salt, rules=rules).carry(module)
    carry_at_init(type(module))
    return module


def _plan(module: nn.Module, options: dict[str, Any]) -> Plan:
    """What is encrypted, by a dry run; plain weights have to be carried exactly."""
    exact = options.get('start') == 'plain' or options.get('runtime') == 'plain'
    points, transform = options.get('points', DEFAULT_POINTS), options.get('transform', DEFAULT_TRANSFORM)
    if not exact:
        return plan_training(module, points, transform, trace_module(module))
    return prove_exact(plan_lock(module, points, transform, trace_module(module)), module)


def check_options(protection: Any) -> dict[str, Any]:
    """A config's protection, checked as far as it can be before anything is built."""
    options = dict(protection or {})
    unknown = sorted(set(options) - set(_OPTIONS))
    if unknown:
        raise KeysegError(f'protection has no option {", ".join(map(repr, unknown))}; it takes {", ".join(_OPTIONS)}')
    normal_form(options.get('transform', DEFAULT_TRANSFORM))
    if options.get('runtime', 'keyed') not in ('keyed', 'plain'):
        raise KeysegError(f"protection.runtime is 'keyed' or 'plain', not {options['runtime']!r}")
    if options.get('start') not in (None, 'plain'):
        raise KeysegError(f"protection.start is 'plain', or left out, not {options['start']!r}")
    if options.get('start') == 'plain' and options.get('points') == FROM_CHECKPOINT:
        raise KeysegError("protection.start='plain' needs points: a plain checkpoint does not tell any")
    _recipients(options.get('recipients'))
    return options


def _recipients(texts: Any) -> tuple[Recipient, ...]:
    """The recipients of a config."""
    return tuple(map(read_recipient, _listed(texts)))


def _listed(texts: Any) -> list[str]:
    """One text, several, or none."""
    return [texts] if isinstance(texts, str) else list(texts or ())


def _host_registry() -> Any:
    """The registry of the scope in force, mmseg's where none is, so that ``of`` means what it means without Keyed."""
    from mmseg.registry import MODELS as MMSEG_MODELS

    return MODELS if DefaultScope.get_current_instance() is not None else MMSEG_MODELS


@functools.cache
def salt_of_run(key_id: str, entries: tuple[MapEntry, ...]) -> bytes:
    """A fresh salt, the same one for all models of this run that are encrypted alike, in all of its processes.

    A teacher takes the weights of its student, and with other tables it would be wrong without a word.
    """
    shared = [fresh_salt()]
    if is_distributed():
        broadcast_object_list(shared)
    return shared[0]
