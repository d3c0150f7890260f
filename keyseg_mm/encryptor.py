"""Feature encryptors: the only place where key and plan meet.

:func:`attach` hooks one encryptor to each site of a live model and two more hooks to the model itself: one puts the
stamp into every state_dict, the other takes it out of every state_dict that is loaded, and checks it. Class,
parameters, buffers and state_dict keys of the model stay as they are.
"""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from keyseg_mm.derive import KeyStream
from keyseg_mm.errors import (
    KeyMismatchError,
    PlainCheckpointError,
    PlanMismatchError,
    StampError,
)
from keyseg_mm.forward import refuse_export, replace_tensor
from keyseg_mm.key import SecretKey
from keyseg_mm.plan import SALT_BYTES, Entry, Plan, stamp_names
from keyseg_mm.points import Site, module_of
from keyseg_mm.secret import Secret
from keyseg_mm.transforms import TRANSFORMS, ChannelMap, normal_form

logger = logging.getLogger('keyseg_mm')

_HOOK_TABLES = (
    '_forward_hooks',
    '_forward_pre_hooks',
    '_state_dict_hooks',
    '_load_state_dict_pre_hooks',
)


def derive_map(key: SecretKey, salt: bytes, entry: Entry) -> ChannelMap:
    """The secret transform of a plan's entry: one HKDF subkey per salt, point, channels and transform."""
    subkey = key.subkey('keyseg_mm/subkey/v1', [entry.point, entry.channels, entry.transform], salt)
    spec = dict(entry.transform)
    return TRANSFORMS[spec.pop('type')].derive(KeyStream(subkey), entry.channels, **spec)


class FeatureEncryptor(Secret):
    """The transform at one site, as a forward hook. Its tables are derived at the first call and kept.

    Attributes:
        site: where it works.
        calls: how often it encrypted a feature map.
    """

    __slots__ = ('site', 'entry', 'calls', '_protection', '_map')

    def __init__(self, site: Site, entry: Entry, protection: Protection) -> None:
        self.site, self.entry, self.calls = site, entry, 0
        self._protection = protection
        self._map: ChannelMap | None = None

    @property
    def public_id(self) -> str:
        return f'{self.entry} of key {self._protection.plan.key_id}'

    @property
    def map(self) -> ChannelMap:
        """The secret transform."""
        if self._map is None:
            self._map = self._protection.derive(self.entry)
        return self._map

    def forget(self) -> None:
        """Drop the tables: the salt has changed."""
        self._map = None

    def on_output(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Forward hook of an ``out:`` point."""
        index = self.site.index_in(output)
        if index is None:  # this pass hands on fewer maps, and not this one
            return output
        return self._encrypt(output) if isinstance(output, Tensor) else replace_tensor(output, index, self._encrypt)

    def on_input(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Forward pre-hook of an ``in:`` point."""
        return (self._encrypt(args[0]), *args[1:])

    def _encrypt(self, x: Tensor) -> Tensor:
        refuse_export(x)
        self.calls += 1
        return self.map(x, self.site.dim)


class Protection(Secret):
    """All encryptors of one model, its key, and the stamp that it saves and checks.

    Attributes:
        plan: the plan in force. A loaded stamp brings its own salt.
        encryptors: in the order of the plan; empty where the key is ``none``.
        deliberate: an unauthorised run on purpose: stamps of other keys are no error.
        allow_plain: tells from the module prefix of a load whether weights without a stamp are welcome.
    """

    __slots__ = ('plan', 'encryptors', 'deliberate', 'allow_plain', '_key', '_fixed_salt', '_stamp', '_met')

    def __init__(
        self,
        key: SecretKey | None,
        plan: Plan | None,
        sites: Sequence[Site] = (),
        deliberate: bool = False,
        allow_plain: Callable[[str], bool] = lambda prefix: False,
        fixed_salt: bool = False,
    ) -> None:
        self._key, self.deliberate, self.allow_plain, self._fixed_salt = key, deliberate, allow_plain, fixed_salt
        self._met: Plan | None = None  # the stamp that an unauthorised model was loaded with
        self._stamp: Tensor | None = None
        if key is not None and plan is not None:
            self.plan = plan
            self.encryptors = [FeatureEncryptor(site, entry, self) for site, entry in zip(sites, plan.entries)]
        else:
            self.encryptors = []

    @property
    def public_id(self) -> str:
        if self._key is None:
            return 'without a key'
        return f'of key {self.plan.key_id} at {len(self.encryptors)} points'

    @property
    def key(self) -> SecretKey | None:
        """The secret key."""
        return self._key

    def derive(self, entry: Entry) -> ChannelMap:
        """The secret transform of one of the plan's entries."""
        if self._key is None:
            raise KeyMismatchError('this model runs without a key')
        return derive_map(self._key, self.plan.salt, entry)

    def put_stamp(self, module: nn.Module, state_dict: dict[str, Any], prefix: str, metadata: Any) -> None:
        """state_dict hook: add the stamp."""
        plan = self._met if self._key is None else self.plan
        if plan is not None:
            if self._stamp is None:
                self._stamp = plan.to_tensor()
            state_dict[prefix + plan.stamp_name] = self._stamp.clone()

    def check_stamp(self, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
        """load_state_dict pre-hook: take the stamp out, check it, and take over its salt.

        Raises:
            PlainCheckpointError: no stamp, and plain weights are not welcome.
            KeyMismatchError: another key's stamp.
            PlanMismatchError: other points or transforms, or another salt than a fixed one.
        """
        names = stamp_names(state_dict, prefix)
        if not names:
            self._no_stamp(prefix)
            return
        if len(names) > 1:
            raise StampError(f'this checkpoint carries {len(names)} stamps for one model; restore it from a copy')
        plan = Plan.from_tensor(state_dict[names[0]])
        if self._key is None:
            logger.warning(
                "key='none': this model is protected with key %s and runs without it, degraded, as asked", plan.key_id
            )
            self._met, self._stamp = plan, None
        else:
            self._check_plan(plan)
            if plan.salt != self.plan.salt:
                self._take_salt(plan.salt)
        del state_dict[names[0]]

    def _no_stamp(self, prefix: str) -> None:
        if self._key is None:
            return
        if not self.allow_plain(prefix):
            raise PlainCheckpointError(
                f'this checkpoint is plain (it carries no stamp), and the model is keyed with {self.plan.key_id}: '
                'its weights would meet encrypted feature maps. To fine-tune a plain model into a protected one, set '
                'protection.allow_plain=True; if it should be protected already, it is the wrong file or its stamp '
                'was stripped'
            )
        logger.info('plain weights loaded into a model keyed with %s, as allowed', self.plan.key_id)

    def _check_plan(self, plan: Plan) -> None:
        if plan.key_id != self.plan.key_id:
            if not self.deliberate:
                raise KeyMismatchError(
                    f'this checkpoint is protected with key {plan.key_id}, and the key given is {self.plan.key_id}: '
                    'give its own key, or key=none to run it unauthorised on purpose'
                )
            logger.warning(
                'a wrong key, %s, on purpose: this checkpoint is protected with %s and runs degraded',
                self.plan.key_id,
                plan.key_id,
            )
        differences = self.plan.differences(plan)
        if differences:
            raise PlanMismatchError(
                'this checkpoint is protected otherwise than the model is (here: the model, there: the checkpoint): '
                + '; '.join(differences)
            )
        if self._fixed_salt and plan.salt != self.plan.salt:
            raise PlanMismatchError(
                f'protection.salt is {self.plan.salt.hex()}, and the checkpoint was made with {plan.salt.hex()}: '
                'leave salt out to take it from the checkpoint'
            )

    def _take_salt(self, salt: bytes) -> None:
        self.plan = Plan(self.plan.key_id, salt, self.plan.entries)
        self._stamp = None
        for encryptor in self.encryptors:
            encryptor.forget()


def attach(
    model: nn.Module,
    key: SecretKey,
    sites: Sequence[Site],
    transform: str | dict[str, Any] = 'ChannelPermutation',
    salt: bytes | None = None,
    fixed_salt: bool = False,
    deliberate: bool = False,
    allow_plain: Callable[[str], bool] = lambda prefix: False,
) -> Protection:
    """Encrypt the feature maps at the given sites of a live model, in every forward pass from now on.

    Args:
        model: any module; it is checked first and changed only if all is well.
        key: the secret key.
        sites: from :func:`keyseg_mm.points.resolve`.
        transform: name or dict of a transform.
        salt: 16 public bytes; by default fresh random ones. A loaded checkpoint's salt takes their place.
        fixed_salt: refuse checkpoints of another salt instead.
        deliberate: a wrong key on purpose.
        allow_plain: see :class:`Protection`.

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
    plan = Plan(
        key.id,
        salt or os.urandom(SALT_BYTES),
        tuple(Entry(str(site.point), site.channels, copy.deepcopy(spec)) for site in sites),
    )
    protection = Protection(key, plan, sites, deliberate, allow_plain, fixed_salt)
    modules = [module_of(model, site.point.name) for site in sites]
    for encryptor, module in zip(protection.encryptors, modules):
        if encryptor.site.point.side == 'out':
            module.register_forward_hook(encryptor.on_output)
        else:
            module.register_forward_pre_hook(encryptor.on_input)
    return watch_stamps(model, protection)


def watch_stamps(model: nn.Module, protection: Protection) -> Protection:
    """Hook a protection's stamp to a model's state_dict and loads."""
    # The public spellings of these two came with torch 2.5; the private ones have existed all along.
    hooked: Any = model
    hooked._register_state_dict_hook(protection.put_stamp)
    hooked._register_load_state_dict_pre_hook(protection.check_stamp)
    return protection


def detach(model: nn.Module) -> int:
    """Take all encryptors and stamps off a model, and off every module in it; returns the number of hooks removed.

    Afterwards it is the plain model: the weights were never touched.
    """
    removed = 0
    for module in model.modules():
        for table in (getattr(module, name) for name in _HOOK_TABLES):
            for handle in [h for h, hook in table.items() if _owner(hook) is not None]:
                del table[handle]
                removed += 1
    return removed


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


def _owner(hook: Any) -> FeatureEncryptor | Protection | None:
    bound = getattr(hook, 'hook', hook)  # torch wraps some hooks in an object that holds them as .hook
    owner = getattr(bound, '__self__', None)
    return owner if isinstance(owner, (FeatureEncryptor, Protection)) else None
