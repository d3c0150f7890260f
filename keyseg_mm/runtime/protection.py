"""Protections: what a live model has besides its weights, and what it accepts and says as these come and go.

A protection has the model's key, its stamp and its encryptors, and is in one of four states (:class:`State`). Every
model has one of its own; a copy of a model has a copy of it, which shares the key and nothing else.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from keyseg_mm.bind import Bound, derive_map, stamp_tensor
from keyseg_mm.entries import SALT_BYTES
from keyseg_mm.envelope import SEALED
from keyseg_mm.errors import KeyMismatchError, LockError, NotFiredError, PlanMismatchError, StampError
from keyseg_mm.keys.held import hold
from keyseg_mm.keys.identity import Key
from keyseg_mm.keys.key import FeatureSecret, Material
from keyseg_mm.keys.secret import Secret
from keyseg_mm.locking.parts import fit_to_file, fit_to_model
from keyseg_mm.locking.planning import complete
from keyseg_mm.locking.scheme import carry_maps, turn_weights
from keyseg_mm.model.points import ROOT
from keyseg_mm.model.sites import Site
from keyseg_mm.runtime.accepting import TAKES_IMAGES, bare_stamp, is_own_key, opened, refuse_other_entries, refuse_plain
from keyseg_mm.runtime.coordinates import carry_loaded, maps_of, with_readers
from keyseg_mm.runtime.encryptor import Encryptor, add_encryptors, encryptors_for, why_idle
from keyseg_mm.runtime.gates import Gate, Refusal, Watch, add_gates, remove_gates, takes_gates
from keyseg_mm.runtime.rules import Rules, State
from keyseg_mm.runtime.unwritten import Unwritten
from keyseg_mm.runtime.witness import TestsOnly, Witness
from keyseg_mm.seal.sections import Sealing
from keyseg_mm.stamp import Stamp, below, stamp_names, stamp_of_value
from keyseg_mm.wrapping import memory_stamp

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

    __slots__ = ('state', 'stamp', 'key', 'features', 'rules', '_is_filled', '_gates', '_spoken')

    def __init__(self, key: Key | None, rules: Rules) -> None:
        self.key, self.rules = key, rules
        hold(key)
        self.state = State.WITHOUT if key is None else State.WAITING
        self.stamp = Stamp(key.id if key else '', bytes(SALT_BYTES), ())
        self.features: Material | None = key
        self._is_filled, self._gates = False, list[Gate]()
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
            LockError: what is written would be plain.
        """
        if self.key is None or self.rules.deliberate:
            raise KeyMismatchError(_NOT_WRITTEN)
        if self.state is State.PLAIN and not self.stamp.maps and self.rules.mode != SEALED:
            raise LockError('this model runs opened and has no maps to write: without a seal its file would be plain')
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

    def become_keyed(
        self, model: nn.Module, stamp: Stamp, sites: Sequence[Site], features: Material | None = None
    ) -> None:
        """Enter the state KEYED, or stay in it with other sites. The model is changed only if all is well."""
        features = features or self.features
        if features is None:
            raise KeyMismatchError('this model runs without a key')
        self.features = features.features(stamp.salt)
        maps = [derive_map(self.features, stamp.salt, entry) for entry in stamp.maps]
        self._change(model, State.KEYED, stamp, encryptors_for(model, sites, maps))

    def become_plain(self, model: nn.Module, stamp: Stamp) -> None:
        """Enter the state PLAIN: the weights are the plain ones, and files get the stamp's maps as they are written."""
        if self.features is None:
            raise KeyMismatchError('this model runs without a key')
        self.features = self.features.features(stamp.salt)
        self._change(model, State.PLAIN, stamp, ())

    @contextmanager
    def filling(self, model: nn.Module) -> Iterator[None]:
        """Within it the weights are plain and get plain values, drawn or pretrained; after it they carry the maps."""
        turn_weights(model, maps_of(self._carried()), {})
        self._is_filled = True
        try:
            yield
        finally:
            self._is_filled = False
        self._begin_plain(model)
        self.carry(model)

    def _begin_plain(self, model: nn.Module) -> None:
        """Leave the state WAITING where a model that runs opened begins without a protected checkpoint."""
        if self.state is State.WAITING and self.rules.plan is not None:
            try:
                self.become_plain(model, self.rules.plan(model))
            except LockError as error:
                logger.warning('this model can be trained opened from a protected checkpoint only: %s', error)

    def carry(self, model: nn.Module) -> None:
        """Let the weights, which are plain, carry the maps."""
        turn_weights(model, {}, maps_of(self._carried()))

    def _carried(self) -> Bound | None:
        """What the weights carry: in the state KEYED the maps, always."""
        return Bound(self.features, self.stamp) if self.state is State.KEYED and self.features is not None else None

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
            self._take_plain(model, state_dict, prefix)
            return
        stamp = stamp_of_value(state_dict[names[0]])
        if stamp.embeddings:
            raise PlanMismatchError(TAKES_IMAGES)
        if self.key is None:
            logger.warning(
                "key='none': this model is protected with %s and runs without it", ' or '.join(stamp.key_ids)
            )
            self.stamp = stamp  # its seal too: what it is of stays noise
        elif is_own_key(self.key, stamp, self.rules):
            fitting = fit_to_model(stamp, model)
            refuse_other_entries(self.stamp, fitting, self.rules)
            features = opened(self.key, stamp, model, state_dict, prefix, self.rules)
            self._take(features, bare_stamp(fitting, self.key), model, state_dict, prefix)
        else:
            self._take_foreign(self.key, fit_to_model(stamp, model), model, state_dict, prefix)
        self._spoken = None
        for name in stamp_names(state_dict, prefix):
            del state_dict[name]

    def _take_foreign(self, key: Key, stamp: Stamp, model: nn.Module, state_dict: dict[str, Any], prefix: str) -> None:
        """Be what another key's stamp says, on purpose. Sealed weights are noise, of which maps make nothing else."""
        bare = bare_stamp(stamp, key)
        if stamp.seal is None or stamp.seal.mode != SEALED:
            refuse_other_entries(self.stamp, stamp, self.rules)
            self._take(key.features(stamp.salt), bare, model, state_dict, prefix, foreign=True)
        elif self.rules.unlock or self.rules.find_sites is not None:
            self._take(key.features(stamp.salt), replace(bare, entries=()), model, state_dict, prefix, foreign=True)

    def _take_plain(self, model: nn.Module, state_dict: dict[str, Any], prefix: str) -> None:
        """Let plain values in where they are welcome; they carry the maps then."""
        if self.key is None or self._is_filled:
            return
        if self.rules.takes_plain:
            self._begin_plain(model)
        if not self.rules.takes_plain or self.state is State.WAITING:
            refuse_plain(self.key)
        if carried := self._carried():
            carry_loaded(model, state_dict, prefix, None, carried, carried)

    def _take(
        self,
        features: FeatureSecret,
        stamp: Stamp,
        model: nn.Module,
        state_dict: dict[str, Any],
        prefix: str,
        foreign: bool = False,
    ) -> None:
        """Be what an accepted stamp says; ``foreign``: of another key, so that what its weights carry is not known."""
        if self.rules.unlock:
            stamp = complete(stamp, model)
            turned = fit_to_file(stamp, below(state_dict, prefix))
            maps = Bound(features, turned).weight_maps()
            # straight into the parameters: the host, given a parameter itself, has nothing to copy
            parameters = dict(model.named_parameters(remove_duplicate=False))
            carry_maps(state_dict, {name: found.inverse() for name, found in maps.items()}, prefix, parameters)
            self.features = features
            self.become_plain(model, stamp)
            return
        there, known = self._carried(), with_readers(stamp, self.stamp)
        is_other = self.state is not State.KEYED or stamp.entries != self.stamp.entries
        if is_other and self.rules.find_sites is not None:
            if not stamp.maps:
                logger.warning('this checkpoint has no maps in its weights: the model runs opened, without encryptors')
            self.become_keyed(model, known, self.rules.find_sites(model, stamp) if stamp.maps else (), features)
        elif features != self.features:
            derived = [derive_map(features, stamp.salt, entry) for entry in stamp.maps]
            for encryptor, secret in zip(self.encryptors, derived):
                encryptor.use(secret)
        self.features, self.stamp = features, known
        new = Bound(features, known)
        carry_loaded(
            model, state_dict, prefix, new if foreign else Bound(features, with_readers(known, stamp)), new, there
        )


_ROOM = 2**16  # bytes: stamps of one model are of one length, since the host's EMA copies one into another
_OVERWRITTEN = (
    'the weights and the stamp of another model were written over those of this copy, whose tables are others: what it '
    'computes is wrong. Make copies (EMA, teachers) after a checkpoint is loaded, or load it into them too'
)
_WAITS = 'no protected checkpoint was loaded, and the model takes its points from one: give load_from or the file'
_NOT_WRITTEN = 'this model runs without its key, on purpose: nothing is written of it'
