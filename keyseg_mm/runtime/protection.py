"""Protections: the encryptors of one model together with its key, and the stamp that it saves and checks.

:func:`attach` hooks one encryptor to each site of a live model and two more hooks to the model itself: one puts the
stamp into every state_dict, the other takes it out of every state_dict that is loaded, and checks it. Class,
parameters, buffers and state_dict keys of the model stay as they are.
"""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from keyseg_mm.bind import derive_map, sign, stamp_tensor, verify
from keyseg_mm.entries import SALT_BYTES, MapEntry, describe
from keyseg_mm.errors import KeyMismatchError, PlainCheckpointError, PlanMismatchError, StampError, TransformError
from keyseg_mm.keys.key import SecretKey
from keyseg_mm.keys.secret import Secret
from keyseg_mm.maps import TRANSFORMS, Map, normal_form
from keyseg_mm.model.sites import Site
from keyseg_mm.runtime.encryptor import FeatureEncryptor, hook_encryptors
from keyseg_mm.stamp import Stamp, below, stamp_names, stamp_of_value

logger = logging.getLogger('keyseg_mm')

_FORWARD_TABLES = ('_forward_hooks', '_forward_pre_hooks')
_HOOK_TABLES = (*_FORWARD_TABLES, '_state_dict_hooks', '_load_state_dict_pre_hooks')


class Protection(Secret):
    """All encryptors of one model, its key, and the stamp that it saves and checks.

    Attributes:
        plan: the plan in force. A loaded stamp brings its own salt.
        encryptors: in the order of the plan; empty where the key is ``none``.
        deliberate: an unauthorised run on purpose: stamps of other keys are no error.
        allow_plain: tells from the module prefix of a load whether weights without a stamp are welcome.
        verify: check the MAC of what is loaded.
    """

    __slots__ = ('plan', 'encryptors', 'deliberate', 'allow_plain', 'verify', '_key', '_fixed_salt', '_met')

    def __init__(
        self,
        key: SecretKey | None,
        plan: Stamp | None,
        sites: Sequence[Site] = (),
        deliberate: bool = False,
        allow_plain: Callable[[str], bool] = lambda prefix: False,
        fixed_salt: bool = False,
        verify: bool = True,
    ) -> None:
        self._key, self.deliberate, self.allow_plain, self._fixed_salt = key, deliberate, allow_plain, fixed_salt
        self.verify = verify
        self._met: Stamp | None = None  # the stamp that an unauthorised model was loaded with
        if key is not None and plan is not None:
            self.plan = plan
            self.encryptors = [FeatureEncryptor(site, entry, self.derive) for site, entry in zip(sites, plan.maps)]
        else:
            self.encryptors = []

    @property
    def public_id(self) -> str:
        if self._key is None:
            return 'without a key'
        return f'of key {self.plan.key_id} at {len(self.encryptors)} points'

    @property
    def missing(self) -> str:
        """What keeps the model from being what its config says, in words; empty where nothing does."""
        return ''

    @property
    def is_unlocked(self) -> bool:
        """Whether the model holds the plain weights of a protected checkpoint."""
        return False

    @property
    def key(self) -> SecretKey | None:
        """The secret key."""
        return self._key

    def derive(self, entry: MapEntry) -> Map:
        """The secret transform of one of the plan's entries."""
        if self._key is None:
            raise KeyMismatchError('this model runs without a key')
        return derive_map(self._key, self.plan.salt, entry)

    def put_stamp(self, module: nn.Module, state_dict: dict[str, Any], prefix: str, metadata: Any) -> None:
        """state_dict hook: add the stamp, with the MAC of these weights."""
        plan = self._met if self._key is None else sign(self._key, self.plan, below(state_dict, prefix))
        if plan is not None:
            state_dict[prefix + plan.name] = stamp_tensor(plan)

    def check_stamp(self, module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
        """load_state_dict pre-hook: take the stamp out, check it and the weights, and take over its salt.

        Raises:
            PlainCheckpointError: no stamp, and plain weights are not welcome.
            KeyMismatchError: another key's stamp.
            PlanMismatchError: other points or transforms, or another salt than a fixed one.
            IntegrityError: the MAC does not fit.
        """
        names = stamp_names(state_dict, prefix)
        if not names:
            self._no_stamp(prefix)
            return
        if len(names) > 1:
            raise StampError(f'this checkpoint carries {len(names)} stamps for one model; restore it from a copy')
        plan = stamp_of_value(state_dict[names[0]])
        if self._key is None:
            logger.warning(
                "key='none': this model is protected with key %s and runs without it, degraded, as asked", plan.key_id
            )
            self._met = plan
        else:
            self._check_plan(plan)
            if self.verify and not self.deliberate:
                verify(self._key, plan, below(state_dict, prefix))
            self._take(plan, module, state_dict, prefix)
        del state_dict[names[0]]

    def _no_stamp(self, prefix: str) -> None:
        if self._key is None:
            return
        if not self.allow_plain(prefix):
            raise PlainCheckpointError(
                f'this checkpoint is plain (it carries no stamp), and the model is keyed with {self.plan.key_id}: '
                'its weights would meet encrypted feature maps. To protect it, as it is or to train on: keyseg lock, '
                "and points='checkpoint' for what that makes. (protection.allow_plain=True takes plain weights, which "
                'may then go on working without the key.) If it should be protected already, it is the wrong file, or '
                'its stamp was stripped'
            )
        logger.info('plain weights loaded into a model keyed with %s, as allowed', self.plan.key_id)

    def _check_plan(self, plan: Stamp) -> None:
        self._check_key(plan)
        self._check_runs(plan)
        differences = self.plan.differences(plan)
        if differences:
            raise PlanMismatchError(
                'this checkpoint is protected otherwise than the model is (here: the model, there: the checkpoint; '
                "points='checkpoint' takes the checkpoint's): " + '; '.join(differences)
            )
        if self._fixed_salt and plan.salt != self.plan.salt:
            raise PlanMismatchError(
                f'protection.salt is {self.plan.salt.hex()}, and the checkpoint was made with {plan.salt.hex()}: '
                'leave salt out to take it from the checkpoint'
            )

    def _check_runs(self, plan: Stamp) -> None:
        if plan.tensors:
            raise PlanMismatchError(
                f'the weights of this checkpoint are encrypted themselves ({describe(plan.tensors[0].transform)}), and '
                'no encryptor makes up for that in a running model: set protection.unlock=True, which unlocks them in '
                'memory, and take points and transform out'
            )

    def _check_key(self, plan: Stamp) -> None:
        if self._key is None or plan.key_id == self._key.id:
            return
        if not self.deliberate:
            raise KeyMismatchError(
                f'this checkpoint is protected with key {plan.key_id}, and the key given is {self._key.id}: '
                'give its own key, or key=none to run it unauthorised on purpose'
            )
        logger.warning(
            'a wrong key, %s, on purpose: this checkpoint is protected with %s and runs degraded',
            self._key.id,
            plan.key_id,
        )

    def _take(self, plan: Stamp, module: nn.Module, state_dict: dict[str, Any], prefix: str) -> None:
        """Take over the salt of a stamp, and what it knows of the weights."""
        if plan.salt != self.plan.salt:
            for encryptor in self.encryptors:
                encryptor.forget()
        self.plan = replace(plan, key_id=self.plan.key_id, mac='')


def attach(
    model: nn.Module,
    key: SecretKey,
    sites: Sequence[Site],
    transform: str | dict[str, Any] = 'ChannelPermutation',
    salt: bytes | None = None,
    fixed_salt: bool = False,
    deliberate: bool = False,
    allow_plain: Callable[[str], bool] = lambda prefix: False,
    verify: bool = True,
) -> Protection:
    """Encrypt the feature maps at the given sites of a live model, in every forward pass from now on.

    Args:
        model: any module; it is checked first and changed only if all is well.
        key: the secret key.
        sites: from :func:`keyseg_mm.model.sites.resolve`.
        transform: name or dict of a transform.
        salt: 16 public bytes; by default fresh random ones. A loaded checkpoint's salt takes their place.
        fixed_salt: refuse checkpoints of another salt instead.
        deliberate: a wrong key on purpose.
        allow_plain, verify: see :class:`Protection`.

    Returns:
        The protection; :func:`detach` takes it off again.

    Raises:
        PointError, TransformError: bad sites or transform. The model is untouched.
        PlanMismatchError: the model is protected already, or the salt is not 16 bytes.
    """
    spec = normal_form(transform)
    if protection_of(model) is not None:
        raise PlanMismatchError(f'this {type(model).__name__} is protected already; detach() it first')
    if salt is not None and len(salt) != SALT_BYTES:
        raise PlanMismatchError(f'a salt is {SALT_BYTES} bytes ({2 * SALT_BYTES} hex digits)')
    _refuse_unfit(spec, sites)
    plan = Stamp(
        key.id,
        salt or os.urandom(SALT_BYTES),
        tuple(MapEntry(str(site.point), site.channels, copy.deepcopy(spec)) for site in sites),
    )
    protection = Protection(key, plan, sites, deliberate, allow_plain, fixed_salt, verify)
    hook_encryptors(model, protection.encryptors)
    return watch_stamps(model, protection)


def _refuse_unfit(spec: dict[str, Any], sites: Sequence[Site]) -> None:
    """Refuse sites whose maps do not suit a transform, all with the same reason together."""
    unfit: dict[str, list[str]] = {}
    for site in sites:
        why = TRANSFORMS[spec['type']].why_not(site.dim, len(site.shape))
        if why:
            unfit.setdefault(why, []).append(str(site.point))
    if unfit:
        raise TransformError('; '.join(f'{", ".join(points)}: {why}' for why, points in unfit.items()))


def watch_stamps(model: nn.Module, protection: Protection) -> Protection:
    """Hook a protection's stamp to a model's state_dict and loads."""
    # The public spellings of these two came with torch 2.5; the private ones have existed all along.
    hooked: Any = model
    hooked._register_state_dict_hook(protection.put_stamp)
    hooked._register_load_state_dict_pre_hook(protection.check_stamp, with_module=True)
    return protection


def detach(model: nn.Module) -> int:
    """Take all encryptors and stamps off a model, and off every module in it; returns the number of hooks removed.

    Afterwards it is the plain model: the weights were never touched.
    """
    return _unhook(model, _HOOK_TABLES)


def unhook_encryptors(model: nn.Module, protection: Protection) -> int:
    """Take one protection's encryptors off a model and leave its stamp; returns the number of hooks removed."""
    return _unhook(model, _FORWARD_TABLES, protection)


def protection_of(model: nn.Module) -> Protection | None:
    """The protection attached to exactly this module, or None."""
    for hook in model._state_dict_hooks.values():
        owner = _owner(hook)
        if isinstance(owner, Protection):
            return owner
    return None


def protections(model: nn.Module) -> list[Protection]:
    """All protections in a model, those of its parts too."""
    return [found for module in model.modules() if (found := protection_of(module)) is not None]


def _unhook(model: nn.Module, tables: Sequence[str], whose: Protection | None = None) -> int:
    removed = 0
    for module in model.modules():
        for table in (getattr(module, name) for name in tables):
            for handle, hook in list(table.items()):
                owner = _owner(hook)
                theirs = whose is None or (isinstance(owner, FeatureEncryptor) and owner.is_of(whose.derive))
                if owner is not None and theirs:
                    del table[handle]
                    removed += 1
    return removed


def _owner(hook: Any) -> FeatureEncryptor | Protection | None:
    bound = getattr(hook, 'hook', hook)  # torch wraps some hooks in an object that holds them as .hook
    owner = getattr(bound, '__self__', None)
    return owner if isinstance(owner, (FeatureEncryptor, Protection)) else None
