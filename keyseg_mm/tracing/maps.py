"""Whose copy is this? A salt for each licensee's copy, and the search for it in a file.

A licensee's key and salt both come from the master key and their name, so the owner needs to keep no record of them.
The stamp says whose copy a file is. Where the stamp was stripped, the weights still say it: the owner locks the plain
weights for each licensee in turn and sees whose come out like the file's. Fine-tuning moves weights a little, and takes
away little of that similarity; unlocking, which needs the licensee's key, takes away all of it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from keyseg_mm.bind import Bound, licensee_salt
from keyseg_mm.entries import SALT_BYTES, Entry, MapEntry, TensorEntry
from keyseg_mm.errors import IntegrityError, LockError
from keyseg_mm.keys.key import SecretKey
from keyseg_mm.locking import unlock
from keyseg_mm.maps import CHANNEL_MAPS, normal_form
from keyseg_mm.maps.order import ValueOrder, WeightMap, places, raw, why_not
from keyseg_mm.seal.sections import trusted_stamp
from keyseg_mm.stamp import Stamp, below, stamps_of

_DECOYS = 8  # names that no licensee has, to see what chance gives
_LAYERS = 12
_MOST_NAMES = 64  # of more names one layer tells which to ask the others about
_TELLING_CHANNELS = 64
_FEWEST_CHANNELS = 16  # of few channels chance gives any map too often
_TELLING_VALUES = 4096  # by chance two orders of so many values agree to a few percent
_CERTAIN = 0.5  # of the way from chance to the very same weights
_LOCKED_DIMS = 2  # weights of fewer dimensions have no input channels
PLAIN = 'plain'


@dataclass(frozen=True)
class Similarity:
    """How like the file the copy of one licensee is."""

    name: str  # the licensee; :data:`PLAIN` for the plain weights
    score: float  # 1 for the very same weights, 0 for what chance gives
    transform: str  # what their copy was taken to be locked with

    @property
    def is_certain(self) -> bool:
        return self.score >= _CERTAIN


def by_stamp(tensors: Mapping[str, Any], master: SecretKey, names: Iterable[str]) -> tuple[str, bool] | None:
    """Whose copy a state_dict's stamp says it is, and whether its seal bears that out; None where it says nobody's.

    Whoever strips or alters a stamp does not get its envelope right, which takes the licensee's key.
    """
    keys = {key.id: (name, key) for name, key in [(name, master.licensee(name)) for name in names]}
    for where, stamp in stamps_of(tensors).items():
        for name, key in (keys[key_id] for key_id in stamp.key_ids if key_id in keys):
            try:
                trusted_stamp(key, below(tensors, where + '.' if where else ''))
            except IntegrityError:
                return name, False
            return name, True
    return None


def by_weights(
    tensors: Mapping[str, Any], original: Mapping[str, Any], master: SecretKey, names: Iterable[str]
) -> list[Similarity]:
    """How like the file each licensee's copy is, the likest first; a stamp in the file is not looked at.

    Raises:
        LockError: the two have no layers in common, or the original takes encrypted images.
    """
    stamp = next(iter(stamps_of(original).values()), None)
    if stamp is not None and stamp.embeddings:
        raise LockError('the original takes encrypted images: all but its patch embedding is plain in every copy')
    plain = unlock(original, master) if stamp is not None else original
    candidates = _candidates(tensors, plain, stamp)
    if not candidates:
        raise LockError('this file and the original have no layers of the same names and shapes: another model')
    first = candidates[0]
    as_it_is: dict[str, WeightMap | None] = {name: None for entry in first.maps for name in entry.weights}
    as_it_is.update(
        {tensor.names[0]: ValueOrder(tensor.count, partial(np.arange, tensor.count)) for tensor in first.tensors}
    )
    found = [Similarity(PLAIN, _similarity(tensors, plain, as_it_is), '')]
    asked = list(names)
    for template in candidates:

        def score(name: str, template: Stamp = template) -> float:
            salt = licensee_salt(master, name, plain, bool(template.tensors))
            return _similarity(tensors, plain, Bound(master.licensee(name), replace(template, salt=salt)).weight_maps())

        likely = asked
        if len(asked) > _MOST_NAMES:
            cheapest = replace(template, entries=(min(template.entries, key=lambda entry: _work(entry, plain)),))
            likely = sorted(asked, key=lambda name: -score(name, cheapest))[:_MOST_NAMES]
        chance = statistics.fmean(score(f'{master.id} decoy {i}') for i in range(_DECOYS))
        kind = (template.maps or template.tensors)[0].transform['type']
        found += [Similarity(name, (score(name) - chance) / (1 - chance), kind) for name in likely]
    best: dict[str, Similarity] = {}
    for found_one in sorted(found, key=lambda f: -f.score):
        best.setdefault(found_one.name, found_one)
    return list(best.values())


def _candidates(tensors: Mapping[str, Any], plain: Mapping[str, Any], stamp: Stamp | None) -> list[Stamp]:
    """How a licensee's copy may be locked: as the original is, or, where that is plain, in any way; of some layers.

    These are the largest that carry maps, and a small one; and of tensors those whose orders are long enough to tell
    and no longer.
    """
    both = {n: t for n, t in plain.items() if isinstance(t, Tensor) and isinstance(tensors.get(n), Tensor)}
    both = {n: t for n, t in both.items() if t.shape == tensors[n].shape}
    wide = [n for n, t in both.items() if t.dim() >= _LOCKED_DIMS and t.shape[1] >= _FEWEST_CHANNELS]
    if stamp is not None:
        wide = [name for name in wide if any(name in entry.weights for entry in stamp.maps)]
    largest = sorted(wide, key=lambda name: -both[name].numel())[: _LAYERS - 1]
    quick = [name for name in wide if both[name].shape[1] >= _TELLING_CHANNELS]
    largest += sorted({*quick} - {*largest}, key=lambda name: both[name].numel())[:1]
    if stamp is not None:
        ways = [tuple(entry for entry in stamp.maps if {*entry.weights} & {*largest})]
        ordered = [entry for entry in stamp.tensors if entry.names[0] in both]
    else:
        layers = [name.removesuffix('.weight') for name in largest if name.endswith('.weight')]
        ways = [
            tuple(
                MapEntry(f'in:{n}', both[f'{n}.weight'].shape[1], normal_form(kind), (f'{n}.weight',)) for n in layers
            )
            for kind in CHANNEL_MAPS
        ]
        every = {'type': 'TensorPermutation'}  # how many values another scheme moves, a plain file cannot say
        ordered = [TensorEntry((n,), t.numel(), every) for n, t in both.items() if not why_not(t)]
    orders = tuple(sorted(ordered, key=lambda entry: abs(math.log(entry.count / _TELLING_VALUES)))[:_LAYERS])
    return [Stamp('', bytes(SALT_BYTES), entries) for entries in (*ways, orders) if entries]


def _work(entry: Entry, plain: Mapping[str, Any]) -> int:
    """How many values a licensee's map is carried into."""
    names = entry.weights if isinstance(entry, MapEntry) else entry.names if isinstance(entry, TensorEntry) else ()
    return sum(plain[name].numel() for name in names)


def _similarity(tensors: Mapping[str, Any], plain: Mapping[str, Any], maps: Mapping[str, WeightMap | None]) -> float:
    """Median cosine, over the layers, between the file's weights and the plain ones with the maps carried into them."""
    cosines = []
    for name, cmap in maps.items():
        expected, found = plain[name], tensors.get(name)
        if isinstance(found, Tensor) and found.shape == expected.shape:
            carried_in = expected if cmap is None else cmap.carry(expected)
            a, b = carried_in.float().flatten(), found.float().flatten()
            if isinstance(cmap, ValueOrder):  # what an order leaves alone, and the mean, tell nothing of whose it is
                where = places(raw(expected), cmap.count)
                a, b = (values[where] - values[where].mean() for values in (a, b))
            cosines.append(float(torch.cosine_similarity(a, b, dim=0)))
    return statistics.median(cosines)
