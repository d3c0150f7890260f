"""Protections: what a live model has besides its weights, and what it accepts and says as these come and go.

A protection has the model's key, its stamp and its encryptors, and is in one of four states (:class:`State`). Every
model has one of its own; a copy of a model has a copy of it, which shares the key and nothing else.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from keyseg_mm.bind import Bound, derive_map, memory_stamp, open_envelope, stamp_tensor
from keyseg_mm.entries import SALT_BYTES, describe
from keyseg_mm.envelope import SEALED
from keyseg_mm.errors import KeyMismatchError, NotFiredError, PlainCheckpointError, PlanMismatchError, StampError
from keyseg_mm.keys.held import hold
from keyseg_mm.keys.identity import Key
from keyseg_mm.keys.key import FeatureSecret, Material
from keyseg_mm.keys.secret import Secret
from keyseg_mm.locking.features import complete
from keyseg_mm.locking.parts import fit_to_file, fit_to_model
from keyseg_mm.locking.scheme import carry_maps
from keyseg_mm.model.points import ROOT
from keyseg_mm.model.sites import Site
from keyseg_mm.runtime.encryptor import Encryptor, add_encryptors, encryptors_for, why_idle
from keyseg_mm.runtime.gates import Gate, Refusal, Watch, add_gates, remove_gates, takes_gates
from keyseg_mm.runtime.rules import Rules, State
from keyseg_mm.runtime.unwritten import Unwritten
from keyseg_mm.runtime.witness import TestsOnly, Witness
from keyseg_mm.seal.sections import Sealing, unseal_section
from keyseg_mm.stamp import Stamp, below, stamp_names, stamp_of_value

__all__ = ['Protection', 'Rules', 'State']
logger = logging.getLogger('keyseg_mm')


class Protection(Secret):
    """The key of one model, its stamp, and its encryptors; made by :mod:`keyseg_mm.runtime.attach`.

    Attributes:
        state: what the model is.
        stamp: what is encrypted, as far as it is known: without entries where nothing is. It is one for memory.
        key: the key, or a customer's identity; None in the state WITHOUT.
        features: what the tables of this model are derived from; the key itself until a checkpoint tells.
        rules: what is accepted.
    """

    __slots__ = ('state', 'stamp', 'key', 'features', 'rules', '_gates', '_spoken')

    def __init__(self, key: Key | None, rules: Rules) -> None:
        self.key, self.rules = key, rules
        hold(key)
        self.state = State.WITHOUT if key is None else State.WAITING
        self.stamp = Stamp(key.id if key else '', bytes(SALT_BYTES), ())
        self.features: Material | None = key
        self._gates: list[Gate] = []
        # the stamp of the state_dicts: one tensor, as a parameter is, and what was in it
        self._spoken: tuple[Stamp, Tensor, Tensor] | None = None

    @property
    def public_id(self) -> str:
        return f'{self.state.value}, {self.stamp.key_id or "none"}, {len(self.encryptors)} points'

    @property
    def encryptors(self) -> list[Encryptor]:
        """In the order of the stamp's maps; none but in the state KEYED."""
        return [gate for gate in self._gates if isinstance(gate, Encryptor)]

    @property
    def sealing(self) -> Sealing:
        """How files are written of the model.

        Raises:
            KeyMismatchError: it has no key to write them with.
        """
        if self.key is None or self.rules.deliberate:
            raise KeyMismatchError(_NOT_WRITTEN)
        return Sealing(self.key, (self.key, *self.rules.recipients), self.rules.mode)

    def __deepcopy__(self, memo: dict[int, Any]) -> Protection:
        """That of a copied model: the same key, and a state and encryptors of its own."""
        twin = Protection(self.key, self.rules)
        memo[id(self)] = twin
        twin.state, twin.stamp, twin.features = self.state, self.stamp, self.features
        twin._gates = [copy.deepcopy(gate, memo) for gate in self._gates]
        return twin

    def check(self, model: nn.Module) -> None:
        """Make sure that the model is what its stamp says: every encryptor is at its site, and nothing bypasses it.

        Raises:
            NotFiredError: it is not, or has no checkpoint yet.
        """
        if self.state is State.WAITING:
            raise NotFiredError(_WAITS)
        if self._spoken is not None and not torch.equal(*self._spoken[1:]):
            if stamp_of_value(self._spoken[1]) != self.stamp:  # the same one may be wrapped anew
                raise PlanMismatchError(_OVERWRITTEN)
            self._spoken[2].copy_(self._spoken[1])
        modules = dict(model.named_modules(remove_duplicate=False))
        idle = [f'{e.site.point}: {why}' for e in self.encryptors if (why := why_idle(modules, e))]
        if idle:
            raise NotFiredError(
                f'this {type(model).__name__} is not what its stamp says: {"; ".join(idle)}. What it computes there is '
                'not protected, and neither returned nor saved. Exchange parts of a model before it is protected; for '
                "adapters, as of peft, run it with protection.runtime='plain'"
            )

    def wait(self, model: nn.Module) -> None:
        """Enter the state WAITING: until a checkpoint is loaded, no module of the model runs."""
        refusal = Refusal(_WAITS)
        names = [name or ROOT for name, module in model.named_modules() if not name or takes_gates(module)]
        add_gates(model, [(name, refusal) for name in names])
        self._gates = [refusal]

    def become_keyed(self, model: nn.Module, stamp: Stamp, sites: Sequence[Site]) -> None:
        """Enter the state KEYED, or stay in it with other sites. The model is changed only if all is well."""
        if self.features is None:
            raise KeyMismatchError('this model runs without a key')
        self.features = self.features.features(stamp.salt)
        maps = [derive_map(self.features, stamp.salt, entry) for entry in stamp.maps]
        self._change(model, State.KEYED, stamp, encryptors_for(model, sites, maps))

    def _change(self, model: nn.Module, state: State, stamp: Stamp, encryptors: Sequence[Encryptor]) -> None:
        watches: list[Watch] = [Witness(model, encryptors, self.check)] if encryptors else []
        watches += [TestsOnly()] if self.rules.deliberate else []
        old, self._gates = self._gates, add_encryptors(model, encryptors, watches)
        remove_gates(model, old)
        self.state, self.stamp = state, stamp

    def put_stamp(self, model: nn.Module, state_dict: dict[str, Any], prefix: str, metadata: Any) -> Any:
        """state_dict hook: add the stamp. It is one for memory: files are sealed as they are written.

        What may not be written, for it would not be what it is called, is given in a dict that refuses to be.

        Raises:
            NotFiredError: the model is not what its stamp says.
        """
        if self.state is State.WAITING:  # the host looks into the state_dict of a model before it loads a checkpoint
            return Unwritten(state_dict, NotFiredError(_WAITS)) if not prefix else None
        self.check(model)
        if self.state is State.KEYED and self.stamp.entries:
            if self._spoken is None or self._spoken[0] is not self.stamp:
                stamp = self.stamp
                if isinstance(self.features, FeatureSecret) and self.key is not None:
                    stamp = memory_stamp(self.key, stamp, self.features)
                spoken = stamp_tensor(stamp, _ROOM)
                self._spoken = self.stamp, spoken, spoken.clone()
            state_dict[prefix + self.stamp.name] = self._spoken[1]
        return Unwritten(state_dict, KeyMismatchError(_NOT_WRITTEN)) if self.rules.deliberate and not prefix else None

    def take_stamp(self, model: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
        """load_state_dict pre-hook: take the stamp out, check it and the weights, and be what it says.

        Raises:
            PlainCheckpointError: no stamp, and plain weights are not welcome.
            KeyMismatchError: another key's stamp.
            PlanMismatchError: other points or transforms, or another salt than a fixed one.
            IntegrityError: it was altered; what was opened of a sealed one is zeros.
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
                "key='none': this model is protected with %s and runs without it", ' or '.join(stamp.key_ids)
            )
            self.stamp = stamp  # its seal too: what it is of stays noise
        elif self._has_key(self.key, stamp):
            fitting = fit_to_model(stamp, model)
            self._check_entries(fitting)
            features, bare = self._open(self.key, stamp, model, state_dict, prefix)
            self._take(features, replace(bare, entries=fitting.entries), model, state_dict, prefix)
        else:
            self._take_foreign(self.key, fit_to_model(stamp, model), model, state_dict, prefix)
        self._spoken = None
        for name in stamp_names(state_dict, prefix):
            del state_dict[name]

    def _take_foreign(self, key: Key, stamp: Stamp, model: nn.Module, state_dict: dict[str, Any], prefix: str) -> None:
        """Be what another key's stamp says, on purpose. Sealed weights are noise, of which maps make nothing else."""
        bare = _bare(stamp, key)
        if stamp.seal is None or stamp.seal.mode != SEALED:
            self._check_entries(stamp)
            self._take(key.features(stamp.salt), bare, model, state_dict, prefix)
        elif self.rules.unlock or self.rules.find_sites is not None:
            self._take(key.features(stamp.salt), replace(bare, entries=()), model, state_dict, prefix)

    def _open(
        self, key: Key, stamp: Stamp, model: nn.Module, state_dict: dict[str, Any], prefix: str
    ) -> tuple[FeatureSecret, Stamp]:
        """Take the seal off, if there is one, straight into the model's own memory; gives the stamp bare."""
        secrets = open_envelope(key, stamp, self.rules.verify)
        if stamp.seal is not None:
            own = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}
            sealed, name = below(state_dict, prefix), stamp.seal.section
            found = unseal_section(key, sealed, name, into=own, verify=self.rules.verify)
            state_dict.update({prefix + n: value for n, value in found.items()})
        return secrets.features, _bare(stamp, key)

    def _take_plain(self, model: nn.Module, prefix: str) -> None:
        if self.key is not None and not self.rules.allow_plain(model, prefix):
            raise PlainCheckpointError(
                f'this checkpoint is plain (it carries no stamp), and the model is keyed with {self.key.id}: '
                'its weights would meet encrypted feature maps. To protect it, as it is or to train on: keyseg lock, '
                "and points='checkpoint' for what that makes. If it should be protected already, it is the wrong file, "
                'or its stamp was stripped'
            )

    def _has_key(self, key: Key, stamp: Stamp) -> bool:
        """Whether a stamp is of this key; where it is not, that is an error, or it was meant to be."""
        if key.id in stamp.key_ids:
            return True
        ids = ' or '.join(stamp.key_ids)
        if not self.rules.deliberate:
            raise KeyMismatchError(
                f'this checkpoint is protected with key {ids}, and the key given is {key.id}: '
                'give its own key, or key=none to run it unauthorised on purpose'
            )
        logger.warning(
            'a wrong key, %s, on purpose: this checkpoint is protected with %s and runs degraded', key.id, ids
        )
        return False

    def _check_entries(self, stamp: Stamp) -> None:
        if self.rules.unlock:
            return
        if stamp.tensors:
            raise PlanMismatchError(
                f'the weights of this checkpoint are encrypted themselves ({describe(stamp.tensors[0].transform)}), '
                "and no encryptor makes up for that in a running model: set protection.runtime='plain', which opens "
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

    def _take(
        self, features: FeatureSecret, stamp: Stamp, model: nn.Module, state_dict: dict[str, Any], prefix: str
    ) -> None:
        """Be what an accepted stamp says."""
        same, self.features = features == self.features, features
        if self.rules.unlock:
            turned = fit_to_file(stamp, below(state_dict, prefix))
            maps = Bound(features, complete(turned, model)).weight_maps()
            # straight into the parameters: the host, given a parameter itself, has nothing to copy
            parameters = dict(model.named_parameters(remove_duplicate=False))
            carry_maps(state_dict, {name: found.inverse() for name, found in maps.items()}, prefix, parameters)
            self._change(model, State.PLAIN, stamp, ())
        elif self.state is State.KEYED and same and stamp.entries == self.stamp.entries:
            self.stamp = stamp  # which may know more of the weights
        elif self.rules.find_sites is not None:
            if not stamp.maps:
                logger.warning('this checkpoint has no maps in its weights: the model runs opened, without encryptors')
            self.become_keyed(model, stamp, self.rules.find_sites(model, stamp) if stamp.maps else ())
        else:
            derived = [derive_map(features, stamp.salt, entry) for entry in stamp.maps]
            for encryptor, secret in zip(self.encryptors, derived):
                encryptor.use(secret)
            self.stamp = stamp


def _bare(stamp: Stamp, key: Key) -> Stamp:
    """What a stamp says, without what was wrapped and sealed, under the name of the key that opened it."""
    return replace(stamp, key_id=key.id, recipients=(), commitment='', seal=None)


_ROOM = 2**16  # bytes: stamps of one model are of one length, since the host's EMA copies one into another
_OVERWRITTEN = (
    'the weights and the stamp of another model were written over those of this copy, whose tables are others: what it '
    'computes is wrong. Make copies (EMA, teachers) after a checkpoint is loaded, or load it into them too'
)
_WAITS = 'no protected checkpoint was loaded, and the model takes its points from one: give load_from or the file'
_NOT_WRITTEN = 'this model runs without its key, on purpose: nothing is written of it'
_TAKES_IMAGES = (
    'this checkpoint takes encrypted images (see `keyseg show`): it runs with its plain config, without a key, on '
    'images of `keyseg encrypt-image` or of keyseg_mm.EncryptImage in the pipeline; `keyseg unlock` makes a plain one'
)
