"""Protections: what a live model has besides its weights, and what it accepts and says as these come and go.

A protection has the model's key, its stamp and its encryptors, and is in one of four states (:class:`State`). Every
model has one of its own; a copy of a model has a copy of it, which shares the key and nothing else.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from torch import nn

from keyseg_mm.bind import Bound, derive_map, sign, stamp_tensor, verify
from keyseg_mm.entries import SALT_BYTES, describe
from keyseg_mm.errors import KeyMismatchError, NotFiredError, PlainCheckpointError, PlanMismatchError, StampError
from keyseg_mm.keys.key import SecretKey
from keyseg_mm.keys.secret import Secret
from keyseg_mm.locking.features import complete
from keyseg_mm.locking.scheme import carry_maps
from keyseg_mm.model.points import ROOT
from keyseg_mm.model.sites import Site
from keyseg_mm.runtime.encryptor import Encryptor, add_encryptors, encryptors_for, why_idle
from keyseg_mm.runtime.gates import Gate, Refusal, add_gates, remove_gates, takes_gates
from keyseg_mm.stamp import Stamp, below, stamp_names, stamp_of_value

logger = logging.getLogger('keyseg_mm')


class State(Enum):
    """What a protected model is.

    A stamp that is loaded and accepted leads from WAITING to KEYED or PLAIN, as was asked; any other state stays.
    """

    WAITING = 'waiting for a checkpoint'  # which tells its points; refuses to run, to be trained and to be saved
    KEYED = 'keyed'  # runs encrypted and saves its stamp
    PLAIN = 'opened in memory'  # runs plain weights without encryptors; its state_dict has no stamp, and it warns
    WITHOUT = 'without a key'  # on purpose: runs degraded, and hands on the stamp that it was loaded with


@dataclass(frozen=True)
class Rules:
    """What a protected model accepts as it is loaded, and what it does with it. Copies of a model share them.

    Attributes:
        deliberate: an unauthorised run on purpose: stamps of other keys are no error.
        allow_plain: tells of a model, and of the prefix it has in a load, whether weights without a stamp are welcome.
        fixed_salt: refuse checkpoints of another salt.
        verify: check the MAC of what is loaded.
        find_sites: where the points of a stamp are in a model. Given, the points are those of the checkpoint.
        unlock: turn the weights into the plain ones as they are loaded.
    """

    deliberate: bool = False
    allow_plain: Callable[[nn.Module, str], bool] = lambda model, prefix: False
    fixed_salt: bool = False
    verify: bool = True
    find_sites: Callable[[nn.Module, Stamp], list[Site]] | None = None
    unlock: bool = False


class Protection(Secret):
    """The key of one model, its stamp, and its encryptors; made by :mod:`keyseg_mm.runtime.attach`.

    Attributes:
        state: what the model is.
        stamp: what is encrypted, as far as it is known: without entries where nothing is. It has no MAC, which is made
            anew for each state_dict.
        key: the secret key; None in the state WITHOUT.
        rules: what is accepted.
    """

    __slots__ = ('state', 'stamp', 'key', 'rules', '_gates')

    def __init__(self, key: SecretKey | None, rules: Rules) -> None:
        self.key, self.rules = key, rules
        self.state = State.WITHOUT if key is None else State.WAITING
        self.stamp = Stamp(key.id if key else '', bytes(SALT_BYTES), ())
        self._gates: list[Gate] = []

    @property
    def public_id(self) -> str:
        return f'{self.state.value}, {self.stamp.key_id or "none"}, {len(self.encryptors)} points'

    @property
    def encryptors(self) -> list[Encryptor]:
        """In the order of the stamp's maps; none but in the state KEYED."""
        return [gate for gate in self._gates if isinstance(gate, Encryptor)]

    def __deepcopy__(self, memo: dict[int, Any]) -> Protection:
        """That of a copied model: the same key, and a state and encryptors of its own."""
        twin = Protection(self.key, self.rules)
        memo[id(self)] = twin
        twin.state, twin.stamp = self.state, self.stamp
        twin._gates = [copy.deepcopy(gate, memo) for gate in self._gates]
        return twin

    def check(self, model: nn.Module) -> None:
        """Make sure that the model is what its stamp says: every encryptor is at its site, and nothing bypasses it.

        Raises:
            NotFiredError: it is not, or has no checkpoint yet.
        """
        if self.state is State.WAITING:
            raise NotFiredError(_WAITS)
        idle = [f'{e.site.point}: {why}' for e in self.encryptors if (why := why_idle(model, e))]
        if idle:
            raise NotFiredError(
                f'this {type(model).__name__} is not what its stamp says: {"; ".join(idle)}. What it computes there is '
                'not protected, and nothing is saved. Exchange or wrap parts of a model before it is protected'
            )

    def wait(self, model: nn.Module) -> None:
        """Enter the state WAITING: until a checkpoint is loaded, no module of the model runs."""
        refusal = Refusal(_WAITS)
        names = [name or ROOT for name, module in model.named_modules() if not name or takes_gates(module)]
        add_gates(model, [(name, refusal) for name in names])
        self._gates = [refusal]

    def become_keyed(self, model: nn.Module, stamp: Stamp, sites: Sequence[Site]) -> None:
        """Enter the state KEYED, or stay in it with other sites. The model is changed only if all is well."""
        if self.key is None:
            raise KeyMismatchError('this model runs without a key')
        maps = [derive_map(self.key, stamp.salt, entry) for entry in stamp.maps]
        self._change(model, State.KEYED, stamp, encryptors_for(model, sites, maps))

    def _change(self, model: nn.Module, state: State, stamp: Stamp, encryptors: Sequence[Encryptor]) -> None:
        old, self._gates = self._gates, add_encryptors(model, encryptors)
        remove_gates(model, old)
        self.state, self.stamp = state, replace(stamp, mac='')

    def put_stamp(self, model: nn.Module, state_dict: dict[str, Any], prefix: str, metadata: Any) -> None:
        """state_dict hook: add the stamp, with the MAC of these weights.

        Raises:
            NotFiredError: the model is not what its stamp says.
        """
        if self.state is State.WAITING:  # the host looks into the state_dict of a model before it loads a checkpoint
            return
        self.check(model)
        if self.state is State.PLAIN:
            logger.warning('these are the plain weights of a model that was unlocked in memory: they carry no stamp')
        elif self.stamp.entries:
            stamp = self.stamp if self.key is None else sign(self.key, self.stamp, below(state_dict, prefix))
            state_dict[prefix + stamp.name] = stamp_tensor(stamp)

    def take_stamp(self, model: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
        """load_state_dict pre-hook: take the stamp out, check it and the weights, and be what it says.

        Raises:
            PlainCheckpointError: no stamp, and plain weights are not welcome.
            KeyMismatchError: another key's stamp.
            PlanMismatchError: other points or transforms, or another salt than a fixed one.
            IntegrityError: the MAC does not fit.
        """
        names = stamp_names(state_dict, prefix)
        if len(names) > 1:
            raise StampError(f'this checkpoint carries {len(names)} stamps for one model; restore it from a copy')
        if not names:
            self._take_plain(model, prefix)
            return
        stamp = stamp_of_value(state_dict[names[0]])
        if stamp.embeddings:
            raise PlanMismatchError(_TAKES_IMAGES)
        if self.key is None:
            logger.warning(
                "key='none': this model is protected with key %s and runs without it, degraded, as asked", stamp.key_id
            )
            self.stamp = stamp
        else:
            self._check_key(self.key, stamp)
            self._check_entries(stamp)
            if self.rules.verify and not self.rules.deliberate:
                verify(self.key, stamp, below(state_dict, prefix))
            self._take(self.key, stamp, model, state_dict, prefix)
        del state_dict[names[0]]

    def _take_plain(self, model: nn.Module, prefix: str) -> None:
        if self.key is None:
            return
        if not self.rules.allow_plain(model, prefix):
            raise PlainCheckpointError(
                f'this checkpoint is plain (it carries no stamp), and the model is keyed with {self.key.id}: '
                'its weights would meet encrypted feature maps. To protect it, as it is or to train on: keyseg lock, '
                "and points='checkpoint' for what that makes. (protection.allow_plain=True takes plain weights, which "
                'may then go on working without the key.) If it should be protected already, it is the wrong file, or '
                'its stamp was stripped'
            )
        logger.info('plain weights loaded into a model keyed with %s, as allowed', self.key.id)

    def _check_key(self, key: SecretKey, stamp: Stamp) -> None:
        if stamp.key_id == key.id:
            return
        if not self.rules.deliberate:
            raise KeyMismatchError(
                f'this checkpoint is protected with key {stamp.key_id}, and the key given is {key.id}: '
                'give its own key, or key=none to run it unauthorised on purpose'
            )
        logger.warning(
            'a wrong key, %s, on purpose: this checkpoint is protected with %s and runs degraded', key.id, stamp.key_id
        )

    def _check_entries(self, stamp: Stamp) -> None:
        if self.rules.unlock:
            return
        if stamp.tensors:
            raise PlanMismatchError(
                f'the weights of this checkpoint are encrypted themselves ({describe(stamp.tensors[0].transform)}), '
                'and no encryptor makes up for that in a running model: set protection.unlock=True, which unlocks '
                'them in memory, and take points and transform out'
            )
        if self.rules.find_sites is not None:
            return
        differences = self.stamp.differences(stamp)
        if differences:
            raise PlanMismatchError(
                'this checkpoint is protected otherwise than the model is (here: the model, there: the checkpoint; '
                "points='checkpoint' takes the checkpoint's): " + '; '.join(differences)
            )
        if self.rules.fixed_salt and stamp.salt != self.stamp.salt:
            raise PlanMismatchError(
                f'protection.salt is {self.stamp.salt.hex()}, and the checkpoint was made with {stamp.salt.hex()}: '
                'leave salt out to take it from the checkpoint'
            )

    def _take(self, key: SecretKey, stamp: Stamp, model: nn.Module, state_dict: dict[str, Any], prefix: str) -> None:
        """Be what an accepted stamp says."""
        stamp = replace(stamp, key_id=key.id)
        if self.rules.unlock:
            maps = Bound(key, complete(stamp, model)).weight_maps()
            # straight into the parameters: the host, given a parameter itself, has nothing to copy
            parameters = dict(model.named_parameters(remove_duplicate=False))
            carry_maps(state_dict, {name: found.inverse() for name, found in maps.items()}, prefix, parameters)
            self._change(model, State.PLAIN, stamp, ())
        elif self.state is State.KEYED and (stamp.salt, stamp.entries) == (self.stamp.salt, self.stamp.entries):
            self.stamp = replace(stamp, mac='')  # which may know more of the weights
        elif self.rules.find_sites is not None:
            self.become_keyed(model, stamp, self.rules.find_sites(model, stamp))
        else:
            derived = [derive_map(key, stamp.salt, entry) for entry in stamp.maps]
            for encryptor, secret in zip(self.encryptors, derived):
                encryptor.use(secret)
            self.stamp = replace(stamp, mac='')


_WAITS = (
    'no protected checkpoint was loaded, and the model takes its points from one; give one (load_from, resume, or the '
    'checkpoint to test)'
)
_TAKES_IMAGES = (
    'this checkpoint takes encrypted images (its patch embedding is locked, see `keyseg show`): it runs with its plain '
    'config, without a key, on images encrypted with `keyseg encrypt-image` or by keyseg_mm.EncryptImage in the '
    'pipeline; `keyseg unlock` makes the plain model of it'
)
