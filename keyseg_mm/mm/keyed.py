"""``Keyed``: builds any registered module of the host, attaches the encryptors, and returns it."""

from __future__ import annotations

import functools
import logging
from typing import Any

from mmengine.dist import broadcast_object_list, is_distributed
from mmengine.registry import DefaultScope
from mmseg.models.segmentors.base import BaseSegmentor
from torch import nn

from keyseg_mm.entries import MapEntry
from keyseg_mm.envelope import SEALED, SIGNED
from keyseg_mm.errors import KeysegError
from keyseg_mm.keys.identity import Recipient, read_recipient
from keyseg_mm.keys.locator import LocatedKey, locate
from keyseg_mm.locking.places import sites_of_stamp
from keyseg_mm.maps import normal_form
from keyseg_mm.mm.advice import PLAIN_START
from keyseg_mm.mm.dryrun import trace_module
from keyseg_mm.mm.registry import MODELS
from keyseg_mm.model.points import PRESETS
from keyseg_mm.model.sites import Site, resolve
from keyseg_mm.runtime.attach import attach, await_checkpoint, entries_at, run_without_key
from keyseg_mm.runtime.protection import Rules
from keyseg_mm.stamp import fresh_salt, parse_salt

logger = logging.getLogger('keyseg_mm')

_OPTIONS = ('key', 'points', 'transform', 'salt', 'allow_plain', 'runtime', 'verify', 'recipients', 'seal')
# The paper's way, and not the strongest: the audits (docs/results.md) have it fall to four labelled photos, by a layer
# learnt at each map, as every transform of so few maps does. It is the default of training since it alone leaves a
# pretrained backbone, which most of the host's configs begin with, what it has learnt. From random weights
# points='linear' with signs holds best of all that was audited; GuardHook says so when a training begins.
DEFAULT_POINTS, DEFAULT_TRANSFORM = 'stages', 'ChannelPermutation'
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
            - ``points``: an encryption point or preset, or a list of them; by default ``stages``, the paper's place.
              ``checkpoint`` takes points and transforms from the checkpoint that is loaded, as for a locked one.
            - ``transform``: name or dict of a transform; by default ``ChannelPermutation``, the paper's.
            - ``salt``: public, 32 hex digits; by default the loaded checkpoint's, or a fresh one, which all models
              that one process builds with the same key and points share: a student and its teacher, say.
            - ``allow_plain``: accept plain weights. What read plain maps may survive the training then, and with it the
              model without its key; to train a plain model on, lock it first.
            - ``runtime``: ``keyed``, with encryptors at the points; or ``plain``: a protected checkpoint is opened as
              it is loaded, and the model runs, and trains on, without encryptors, at the plain model's speed. What it
              writes is sealed all the same.
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
    unlock = options.get('runtime', 'keyed') == 'plain'
    follows = unlock or options.get('points') == FROM_CHECKPOINT
    rules = Rules(
        deliberate=located.deliberate,
        allow_plain=lambda part, prefix: _is_initialisation(part, prefix) or _takes_plain(options),
        fixed_salt=options.get('salt') is not None,
        verify=bool(options.get('verify', True)),
        find_sites=sites_of_stamp if follows else None,
        unlock=unlock,
        recipients=_recipients(options.get('recipients')),
        mode=SEALED if options.get('seal', True) else SIGNED,
        named=tuple(point for point in _listed(options.get('points')) if point not in PRESETS),
    )
    if follows:
        await_checkpoint(module, located.key, rules)
    else:
        sites = _sites(module, options.get('points', DEFAULT_POINTS))
        entries = entries_at(sites, options.get('transform', DEFAULT_TRANSFORM))
        salt = options.get('salt')
        salt = salt_of_run(located.key.id, entries) if salt is None else parse_salt(salt)
        attach(module, located.key, sites, entries, salt=salt, rules=rules)
    return module


def _sites(module: nn.Module, points: str | list[str]) -> list[Site]:
    """Resolve points by a dry run; presets of backbone and neck spare the heads their part in it."""
    wanted = _listed(points)
    return resolve(wanted, module, trace_module(module, heads=not set(wanted) <= {'stages', 'neck'}))


def check_options(protection: Any) -> dict[str, Any]:
    """A config's protection, checked as far as it can be before anything is built."""
    options = dict(protection or {})
    unknown = sorted(set(options) - set(_OPTIONS))
    if unknown:
        raise KeysegError(f'protection has no option {", ".join(map(repr, unknown))}; it takes {", ".join(_OPTIONS)}')
    normal_form(options.get('transform', 'ChannelPermutation'))
    if options.get('runtime', 'keyed') not in ('keyed', 'plain'):
        raise KeysegError(f"protection.runtime is 'keyed' or 'plain', not {options['runtime']!r}")
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


def _takes_plain(options: dict[str, Any]) -> bool:
    """Whether a config welcomes plain weights; asked when some come, and it says what that means."""
    if options.get('allow_plain'):
        logger.warning(PLAIN_START)
        return True
    return False


def _is_initialisation(module: nn.Module, prefix: str) -> bool:
    """Whether a load is the host filling a keyed backbone, neck or head from its own ``init_cfg``.

    Such a load goes to the part alone (no prefix), while a checkpoint of the model reaches it as ``backbone.`` or so.
    """
    init_cfg = getattr(module, 'init_cfg', None)
    configs = init_cfg if isinstance(init_cfg, (list, tuple)) else [init_cfg]
    pretrained = any(isinstance(c, dict) and str(c.get('type')).startswith('Pretrained') for c in configs)
    return pretrained and prefix == '' and not isinstance(module, BaseSegmentor)
