"""A copy of a protected file with other maps, and a mark, in its weights, in one pass over them.

Each tensor is opened, changed and sealed anew on its way from one file to the other: no more than one for each thread
is ever open. What does not fit that, in form or in what it holds, is for :mod:`keyseg_mm.checkpoint.rekeying` to open
and write as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from keyseg_mm.bind import Bound
from keyseg_mm.checkpoint.marks import Add, Mark, strength_of
from keyseg_mm.checkpoint.opened import opened_of
from keyseg_mm.checkpoint.patching import ForeignFileError, patch_anew, patches_of
from keyseg_mm.envelope import SEALED
from keyseg_mm.keys.identity import Key, Recipient
from keyseg_mm.keys.key import ContentKey, FeatureSecret
from keyseg_mm.locking.parts import fit_to_file
from keyseg_mm.locking.planning import refuse_block_wise
from keyseg_mm.locking.scheme import join_maps, refuse_misfits
from keyseg_mm.maps.order import WeightMap, blocks
from keyseg_mm.seal.memory import Put, ScatteredError
from keyseg_mm.seal.sections import WEIGHTS, secrets_of
from keyseg_mm.seal.tensors import Change, open_tensors, reseal_tensors
from keyseg_mm.stamp import Stamp, fresh_salt, is_stamp
from keyseg_mm.wrapping import Secrets, close_envelope

Salt = Callable[[Mapping[str, Any]], bytes]
_WHOLE = 'what is written of this file is made of all of it'


@dataclass(frozen=True)
class ToCome:
    """What a copy gets in place of what its original has.

    Attributes:
        key: of its maps; it opens the copy.
        recipients: who else can open it.
        salt: makes the salt of its maps; None for a fresh one.
        mark: put into its weights.
    """

    key: Key
    recipients: tuple[Key | Recipient, ...] = ()
    salt: Salt | None = None
    mark: Mark | None = None


def copy_in_one_pass(path: str | Path, key: Key, out: str | Path, to_come: ToCome, overwrite: bool) -> dict[str, Stamp]:
    """Make the copy of a sealed file.

    Args:
        path: sealed, with weights and meta alone, maps of channels in its weights or none.
        key: of one of its recipients.
        out: file to make, of the same format.
        to_come: what is to be another.
        overwrite: replace ``out``.

    Returns:
        The new stamp under ``''``, where there are maps.

    Raises:
        ForeignFileError: it is another file.
        ScatteredError: its tensors do not lie in it one by one.
        KeysegError: it could not be opened or written. In all cases nothing is left behind.
    """
    stamps: dict[str, Stamp] = {}

    def make(found: dict[str, Any], put: Put) -> dict[bytes, bytes]:
        opened = opened_of(found)  # without a key: nothing is opened
        stamp, weights = opened.stamp, {n: t for n, t in opened.state_dict.items() if not is_stamp(n)}
        strength = strength_of(opened, to_come.mark)
        if stamp is None or opened.others or opened.dropped or not _is_fit(stamp, opened.state_dict):
            raise ForeignFileError(_WHOLE)
        original = _Original(key, stamp, weights, found.get('meta'))
        new = original.copied(to_come, strength, put)
        stamps.update({'': new} if new.entries else {})
        return patches_of([(stamp, new)], found)

    patch_anew(path, out, make, overwrite)
    return stamps


def _is_fit(stamp: Stamp, tensors: Mapping[str, Any]) -> bool:
    """Whether a file's stamp is all that is to be known of it."""
    alone = sum(map(is_stamp, tensors)) == 1 and not all(name.startswith('module.') for name in tensors)
    maps = len(stamp.maps) == len(stamp.entries) and stamp.is_carried
    return stamp.seal is not None and stamp.seal.mode == SEALED and alone and maps


class _Original:
    """A sealed file, whose small tensors alone are opened."""

    def __init__(self, key: Key, stamp: Stamp, weights: Mapping[str, Tensor], meta: Any) -> None:
        if stamp.seal is None:
            raise ForeignFileError(_WHOLE)
        self.stamp, self.seal, self.weights, self.meta = stamp, stamp.seal, weights, meta
        self.features, self.content = secrets_of(key, stamp, WEIGHTS)
        self.head = replace(stamp, seal=None).to_bytes()
        self.small = open_tensors(weights, self.content, self.seal, self.head, meta, only=lambda t: t.dim() < 2)

    def copied(self, to_come: ToCome, strength: float, put: Put) -> Stamp:
        """Put all tensors as the copy has them, and say its stamp."""
        new, features, fresh = Stamp(to_come.key.id, fresh_salt(), ()), FeatureSecret.generate(), ContentKey.generate()
        old_maps, new_maps = dict[str, WeightMap](), dict[str, WeightMap]()
        if self.stamp.entries:
            known = fit_to_file(self.stamp, self.weights)
            refuse_block_wise(entry.transform for entry in known.maps)
            new = Stamp(to_come.key.id, fresh_salt(to_come.salt and to_come.salt(self.small)), known.entries)
            features = to_come.key.features(new.salt)
            old_maps, new_maps = Bound(self.features, known).weight_maps(), Bound(features, new).weight_maps()
        change = self._change(old_maps, new_maps, to_come.mark)
        new = replace(new, fingerprint=strength)
        new = close_envelope(new, Secrets(features, fresh), [to_come.key, *to_come.recipients])
        heads, contents = (self.head, new.to_bytes()), (self.content, fresh)
        return replace(new, seal=reseal_tensors(self.weights, put, contents, self.seal, heads, self.meta, change))

    def _change(self, old: Mapping[str, WeightMap], new: Mapping[str, WeightMap], mark: Mark | None) -> Change | None:
        """What makes the copy's tensors of the original's."""
        back, there, joined = join_maps(old, {}), join_maps({}, new), join_maps(old, new)
        for name, first in self.seal.shared.items():
            if joined.get(name) is not joined.get(first):
                raise ScatteredError(f'{name} and {first} are one tensor in this file, and are not to be')
        refuse_misfits(self.weights, joined)
        if mark is None:
            return (lambda name, t: _carry(joined, name, t)) if joined else None
        small = {name: back[name].carry(t) if name in back and t.dim() < 2 else t for name, t in self.small.items()}
        adder = mark.adder({name: t for name, t in small.items() if name not in self.seal.shared or t.dim() < 2})

        def change(name: str, tensor: Tensor) -> None:
            add = adder(name, tensor)
            if name in joined:
                _mark_within(back[name], add, there[name], tensor)
            else:
                add(tensor)

        return change


def _mark_within(back: WeightMap, add: Add, there: WeightMap, tensor: Tensor) -> None:
    """Take a tensor out of one map, mark it, and put it into another one: in its place, in parts where that goes."""
    first, then = back.by_rows(tensor), there.by_rows(tensor)
    parts = (tensor,) if first is None or then is None else blocks(tensor)
    for rows in parts:
        plain = back.carry(rows) if first is None else first(rows.clone())  # read in order, to be gathered from
        add(plain)
        rows.copy_(there.carry(plain) if then is None else then(plain))


def _carry(maps: Mapping[str, WeightMap], name: str, tensor: Tensor) -> None:
    if name in maps:
        maps[name].carry(tensor, tensor)
