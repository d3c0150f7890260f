"""Witnesses: a protected model hands nothing out that its stamp does not tell the truth about.

At every run of the model its witness sees that each encryptor that belongs to this kind of run has worked, and that it
stands where the stamp says: a module that was replaced, wrapped or copied, and a path that passes one by, are errors
before a result is returned. It costs a mark for each encryptor, and is traced by torch.compile as it is.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from keyseg_mm.errors import KeyMismatchError, NotFiredError
from keyseg_mm.model.outputs import flat_tensors
from keyseg_mm.model.points import ROOT
from keyseg_mm.runtime.encryptor import Encryptor
from keyseg_mm.runtime.export import refuse_export
from keyseg_mm.runtime.gates import TRAINING, Watch

_Edge = tuple[nn.Module, str, nn.Module]  # a module, a name in it, and the module of that name


class Witness(Watch):
    """Watches the runs of a keyed model.

    Args:
        model: as it is to stay.
        encryptors: of the model.
        check: raises the error that says what is wrong with a model.
    """

    __slots__ = ('_encryptors', '_edges', '_check', '_expected', '_seen', '_inside')

    def __init__(self, model: nn.Module, encryptors: Sequence[Encryptor], check: Callable[[nn.Module], None]) -> None:
        self._set(encryptors, _edges(model, [encryptor.site.point.name for encryptor in encryptors]), check)

    def _set(self, encryptors: Sequence[Encryptor], edges: list[_Edge], check: Callable[[nn.Module], None]) -> None:
        self._encryptors, self._edges, self._check = encryptors, edges, check
        self._expected = {
            (name, mode): tuple(str(e.site.point) for e in encryptors if {name, mode} <= set(e.site.runs))
            for name in ('test', 'train')
            for mode in ('test', 'train')
        }
        self._seen: dict[str, bool] = {}
        self._inside: list[None] = []  # one for each run that has begun: threads only ever append and pop
        for encryptor in encryptors:
            encryptor.seen = self._seen

    def __deepcopy__(self, memo: Any) -> Witness:
        """That of a copied model, of its own encryptors and modules."""
        twin = Witness.__new__(Witness)
        memo[id(self)] = twin
        twin._set(*copy.deepcopy((self._encryptors, self._edges, self._check), memo))
        return twin

    def begin(self, model: nn.Module, name: str) -> bool:
        if all(encryptor.given is None for encryptor in self._encryptors):
            refuse_export()
        first = not self._inside
        self._inside.append(None)
        if first:
            self._seen.clear()
        return first

    def check(self, model: nn.Module, name: str, output: Any) -> None:
        mode = 'train' if model.training else 'test'
        kind = 'train' if name == TRAINING else mode if name == 'forward' else 'test'
        idle = [point for point in self._expected[kind, mode] if point not in self._seen]
        moved = [key for parent, key, child in self._edges if parent._modules.get(key) is not child]
        if moved:
            self._check(model)
        if idle or moved:
            raise NotFiredError(
                f'this {type(model).__name__} ran past its encryptors at {", ".join(idle or moved)}: its result is not '
                'what its stamp says, and is not returned. Something calls a layer by another way than as a module, '
                'or a copy of it, or took its place'
            )

    def end(self) -> None:
        self._inside.pop()
        if not self._inside:  # torch.compile is to find it as it was
            self._seen.clear()


class TestsOnly(Watch):
    """Watches the runs of a model that has no key, or a wrong one, on purpose: it is not trained."""

    __slots__ = ()

    def begin(self, model: nn.Module, name: str) -> bool:
        if name == TRAINING and model.training and torch.is_grad_enabled():
            raise KeyMismatchError(_NOT_TRAINED)
        return model.training and name == 'forward'

    def check(self, model: nn.Module, name: str, output: Any) -> None:
        for tensor in flat_tensors(output):
            if tensor.requires_grad:
                tensor.register_hook(_refuse_gradient)  # type: ignore[no-untyped-call]


def _refuse_gradient(grad: Tensor) -> NoReturn:
    raise KeyMismatchError(_NOT_TRAINED)


_NOT_TRAINED = (
    'this model runs without its key, or with one that anybody can make (none, random:SEED), on purpose, and is not '
    'trained: what came of it would be called protected and would not be. Give a real key'
)


def _edges(model: nn.Module, names: Sequence[str]) -> list[_Edge]:
    """The modules on the ways from a model to those of some names, each with the one that it is in."""
    found: dict[tuple[int, str], _Edge] = {}
    for name in names:
        parent = model
        for key in name.split('.') if name != ROOT else ():
            child = parent.get_submodule(key)
            found[id(parent), key] = parent, key, child
            parent = child
    return list(found.values())
