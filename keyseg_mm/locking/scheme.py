"""What a scheme is: a way to protect a trained model by changing its weights with a key.

A scheme plans (in public: which entries, what is left out, and why) and carries: from plain to protected, back, and
from one key to another, always by the same code. The registry has one scheme for each way that ``keyseg lock`` offers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from keyseg_mm.bind import Bound
from keyseg_mm.entries import Entry
from keyseg_mm.errors import LockError
from keyseg_mm.keys.identity import Key
from keyseg_mm.locking.plan import Plan
from keyseg_mm.locking.proof import Bench, Proof
from keyseg_mm.maps.order import WeightMap
from keyseg_mm.stamp import Stamp
from keyseg_mm.threads import in_threads


class Scheme:
    """A way to protect a trained model."""

    #: What ``keyseg lock --scheme`` calls it.
    name: ClassVar[str]
    #: The kind of entries that it writes.
    entry: ClassVar[type[Entry]]
    #: Whether its weights come back bit for bit whatever the model is, so that a lock from Python runs nothing.
    is_exact: ClassVar[bool] = False

    def plan(self, model: nn.Module, weights: Mapping[str, Any], **options: Any) -> Plan:
        """Find out what can be done.

        Args:
            model: the plain model, with any weights; it stays as it is.
            weights: plain weights that fit it, see :func:`keyseg_mm.locking.fitting.fit`.
            options: of the scheme.

        Raises:
            LockError: nothing can, or not as asked.
        """
        raise NotImplementedError

    def carry(
        self, tensors: dict[str, Any], prefix: str, before: Bound | None, after: Bound | None, own: bool = False
    ) -> None:
        """Change weights in place from what ``before`` made of them to what ``after`` asks for; None is plain.

        All is checked before the first tensor is changed.

        Args:
            tensors: a state_dict; its values are replaced.
            prefix: of the module's names in it.
            before, after: key and stamp.
            own: the tensors' memory may be overwritten.

        Raises:
            LockError: a weight is missing, or is not what the stamp says.
        """
        raise NotImplementedError

    def fitted(self, stamp: Stamp, tensors: Mapping[str, Any], prefix: str) -> Stamp:
        """A stamp for plain weights that were changed a little since it was made."""
        return stamp

    def prove(
        self, bench: Bench, model: nn.Module, weights: Mapping[str, Any], plan: Plan, key: Key, salt: bytes
    ) -> Proof:
        """Run the plain model and the locked one, as their users would; nothing is written and nothing changed.

        Args:
            bench: how models are run.
            model: the plain model, with any weights.
            weights: plain weights that fit it.
            plan: from :meth:`plan`.
            key: the secret key.
            salt: 16 bytes.

        Raises:
            LockError: with the key it is not the plain model, or without it is.
        """
        raise NotImplementedError

    def key_space(self, entry: Entry) -> float:
        """log2 of the number of different maps that an entry has; the key itself has 256 bits."""
        raise NotImplementedError


#: By the name of the scheme.
SCHEMES: dict[str, Scheme] = {}
_Class = TypeVar('_Class', bound=type[Scheme])


def register(cls: _Class) -> _Class:
    """Class decorator: make a scheme known by its name."""
    SCHEMES[cls.name] = cls()
    return cls


def scheme_of(entry: Entry) -> Scheme:
    """The scheme that carries entries of this kind.

    Raises:
        LockError: none does.
    """
    for scheme in SCHEMES.values():
        if isinstance(entry, scheme.entry):
            return scheme
    raise LockError(f'no scheme known here turns weights for {entry.scheme!r}; import keyseg_mm.baselines')


def key_space(stamp: Stamp) -> float:
    """log2 of the number of different ways in which a key may fill a stamp; the key itself has 256 bits."""
    return sum(scheme_of(entry).key_space(entry) for entry in stamp.entries)


def carry_maps(
    tensors: dict[str, Any], maps: Mapping[str, WeightMap], prefix: str = '', into: Mapping[str, Tensor] | None = None
) -> None:
    """Carry maps into the weights of a dict, whose values are replaced. Names of one tensor stay names of one tensor.

    Args:
        tensors: the state_dict.
        maps: by the name of the weight, without the prefix.
        prefix: of the names in the state_dict.
        into: by name, without the prefix, tensors that take the results, which spares making new ones.

    Raises:
        LockError: a weight is missing, or is not what its stamp says. Nothing was changed.
    """
    refuse_misfits(tensors, maps, prefix)
    once: dict[tuple[int, int, torch.Size], list[str]] = {}  # names of one tensor with one map
    for name, cmap in maps.items():
        weight = tensors[prefix + name]
        once.setdefault((id(cmap), weight.data_ptr(), weight.shape), []).append(name)

    def work(names: list[str]) -> None:
        weight, target = tensors[prefix + names[0]], (into or {}).get(names[0])
        result = maps[names[0]].carry(weight, target if _takes(target, weight) else None)
        for name in names:
            tensors[prefix + name] = result

    largest_first = sorted(once.values(), key=lambda names: -tensors[prefix + names[0]].numel())  # none late and alone
    in_threads(work, largest_first)


def refuse_misfits(tensors: Mapping[str, Any], maps: Mapping[str, WeightMap], prefix: str = '') -> None:
    """Make sure that maps fit the weights of a dict.

    Raises:
        LockError: a weight is missing, or is not what its stamp says.
    """
    for name, cmap in maps.items():
        wanted = cmap.misfit(tensors.get(prefix + name))
        if wanted:
            raise LockError(
                f'{prefix + name}: this checkpoint has no {wanted} there, as its stamp says; it is the wrong '
                'checkpoint for this model, or it was altered'
            )


def join_maps(old: Mapping[str, WeightMap], new: Mapping[str, WeightMap]) -> dict[str, WeightMap]:
    """What leads from old maps to new ones, by the names of the weights; either may have none for a weight.

    Names that had one map have one. There is none where the two are the same object.
    """
    made: dict[tuple[int, int], WeightMap] = {}
    maps: dict[str, WeightMap] = {}
    for name in {**old, **new}:
        before, after = old.get(name), new.get(name)
        if before is after:
            continue
        pair = id(before), id(after)
        if pair not in made:
            back = None if before is None else before.inverse()
            joined = back if after is None else after if back is None else after.compose(back)
            made[pair] = joined  # type: ignore[assignment]  # one of the two is there
        maps[name] = made[pair]
    return maps


def turn_weights(model: nn.Module, old: Mapping[str, WeightMap], new: Mapping[str, WeightMap]) -> None:
    """:func:`join_maps` carried into a live model's weights, in place.

    Args:
        model: its weights carry ``old``; names that it does not have are passed over.
        old, new: by the names of weights.

    Raises:
        LockError: a weight has another size than its map. Nothing was changed.
    """
    own: dict[str, Any] = dict(model.named_parameters())  # each once, whatever its names
    maps = {name: found for name, found in join_maps(old, new).items() if name in own}
    carry_maps(dict(own), maps, into=own)


def change_maps(
    tensors: dict[str, Any], prefix: str, old: Mapping[str, WeightMap], new: Mapping[str, WeightMap], own: bool
) -> None:
    """:func:`carry_maps` from old maps to new ones in one step; either may be empty.

    Weights are overwritten where their memory may be (``own``) and no other entry uses it.
    """
    maps = join_maps(old, new)
    used = Counter(t.untyped_storage().data_ptr() for t in tensors.values() if own and isinstance(t, Tensor))
    found = {name: tensors[prefix + name] for name in maps if isinstance(tensors.get(prefix + name), Tensor)}
    alone = {name: t for name, t in found.items() if used[t.untyped_storage().data_ptr()] == 1}
    carry_maps(tensors, maps, prefix, alone)


def _takes(target: Tensor | None, weight: Tensor) -> bool:
    """Whether a tensor can take what is carried into a weight, bit for bit."""
    if target is None or target.shape != weight.shape:
        return False
    return (target.dtype, target.device, target.layout) == (weight.dtype, weight.device, weight.layout)
