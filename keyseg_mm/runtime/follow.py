"""Protections that take their points from the checkpoint: to run a locked model, or to unlock it as it is loaded.

A plan that was worked out for one model, layer by layer, is best not written down a second time in a config.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from keyseg_mm.bind import Bound
from keyseg_mm.entries import SALT_BYTES
from keyseg_mm.errors import LockError, NotFiredError
from keyseg_mm.keys.key import SecretKey
from keyseg_mm.locking.features import complete
from keyseg_mm.locking.scheme import carry_maps
from keyseg_mm.model.sites import Site, Trace
from keyseg_mm.runtime.encryptor import FeatureEncryptor, hook_encryptors
from keyseg_mm.runtime.protection import Protection, detach, protection_of, unhook_encryptors, watch_stamps
from keyseg_mm.stamp import Stamp

logger = logging.getLogger('keyseg_mm')


class FollowingProtection(Protection):
    """A protection whose plan comes with the checkpoint; until then it has none, and the model does not run.

    Args:
        key: the secret key.
        find_sites: the sites of a plan's points in a module.
        unlock: turn the weights back into the plain ones as they are loaded, and run without encryptors.
        deliberate, allow_plain, verify: see :class:`keyseg_mm.runtime.protection.Protection`.
    """

    __slots__ = ('unlock', '_find_sites', '_loaded')

    def __init__(
        self,
        key: SecretKey,
        find_sites: Callable[[nn.Module, Stamp], list[Site]],
        unlock: bool = False,
        deliberate: bool = False,
        allow_plain: Callable[[str], bool] = lambda prefix: False,
        verify: bool = True,
    ) -> None:
        super().__init__(key, Stamp(key.id, bytes(SALT_BYTES), ()), (), deliberate, allow_plain, verify=verify)
        self.unlock, self._find_sites = unlock, find_sites
        self._loaded = False

    @property
    def missing(self) -> str:
        """What keeps the model from being what its config says; empty once a protected checkpoint was loaded."""
        return '' if self._loaded else 'no protected checkpoint was loaded, and the model takes its points from one'

    @property
    def is_unlocked(self) -> bool:
        return self.unlock and self._loaded

    def put_stamp(self, module: nn.Module, state_dict: dict[str, Any], prefix: str, metadata: Any) -> None:
        if self.is_unlocked:
            logger.warning('these are the plain weights of a model that was unlocked in memory: they carry no stamp')
        elif self._loaded:
            super().put_stamp(module, state_dict, prefix, metadata)

    def refuse_to_run(self, module: nn.Module, args: Any) -> None:
        """Forward pre-hook of the model, until a checkpoint was loaded: it would run, and be trained, plain.

        Raises:
            NotFiredError: none was.
        """
        if self.missing:
            raise NotFiredError(f'{self.missing}; give one (load_from, resume, or the checkpoint to test)')

    def _check_plan(self, plan: Stamp) -> None:
        self._check_key(plan)
        if not self.unlock:
            self._check_runs(plan)

    def _take(self, plan: Stamp, module: nn.Module, state_dict: dict[str, Any], prefix: str) -> None:
        """Unlock the weights that are being loaded, or attach the encryptors that the stamp names."""
        assert self._key is not None  # a load without a key does not come here
        mine = replace(plan, key_id=self._key.id, mac='')
        if self.unlock:
            maps = Bound(self._key, complete(mine, module)).weight_maps()
            # straight into the parameters: the host, given a parameter itself, has nothing to copy
            parameters = dict(module.named_parameters(remove_duplicate=False))
            carry_maps(state_dict, {name: cmap.inverse() for name, cmap in maps.items()}, prefix, parameters)
        else:
            if (mine.salt, mine.entries) != (self.plan.salt, self.plan.entries):
                sites = self._find_sites(module, mine)
                self.encryptors = [FeatureEncryptor(site, e, self.derive) for site, e in zip(sites, mine.maps)]
            unhook_encryptors(module, self)  # of an earlier load
            hook_encryptors(module, self.encryptors)
        self.plan, self._loaded = mine, True


def follow(module: nn.Module, protection: FollowingProtection) -> None:
    """Let a module take its protection from the checkpoint that is loaded into it."""
    watch_stamps(module, protection)
    module.register_forward_pre_hook(protection.refuse_to_run)


def unlock_model(model: nn.Module, trace: Trace | None = None) -> None:
    """Turn a protected live model into the plain one, in place: plain weights, no encryptors, no stamp.

    Args:
        model: with its encryptors attached and its checkpoint loaded; locked, or trained with the key.
        trace: which points fire in it; by default found by a dry run, where the stamp does not know the weights.

    Raises:
        LockError: it is not protected, has no key, or points cannot be absorbed. The model stays as it is.
    """
    owners = [(module, found) for module in model.modules() if (found := protection_of(module)) is not None]
    if not owners:
        raise LockError(f'this {type(model).__name__} is not protected; there is nothing to unlock')
    changed: list[tuple[nn.Parameter, Tensor]] = []
    for module, protection in owners:
        if protection.key is None or protection.deliberate:
            raise LockError('this model runs without its key, on purpose; build it with the right one to unlock it')
        if protection.missing:
            raise LockError(f'{protection.missing}; load one first')
        if not protection.is_unlocked:
            maps = Bound(
                protection.key, complete(protection.plan, module, trace if module is model else None)
            ).weight_maps()
            once = {id(p): (p, maps[n]) for n in maps for p in [module.get_parameter(n)]}  # names of one tensor
            changed += [(p, cmap.inverse().carry(p)) for p, cmap in once.values()]
    with torch.no_grad():
        for parameter, plain in changed:
            parameter.copy_(plain)
    detach(model)
