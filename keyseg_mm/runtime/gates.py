"""Gates in the class of a module: its inputs and its output are led through them, wherever it is called from.

A gated module has a subclass of its own class, of the same name, as :mod:`torch.nn.utils.parametrize` gives it one for
parameters. A forward hook would be passed by: by code that torch.compile made for the plain model, by a direct call of
``forward``, by torch's fused layers. The classes hold nothing secret and serve all models; the gates lie in the
module's ``__dict__``, beside its parameters, and are copied with it.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from keyseg_mm.errors import NotFiredError, PlanMismatchError, PointError, SecretExposedError
from keyseg_mm.keys.secret import Secret
from keyseg_mm.model.layers import GATED
from keyseg_mm.model.sites import module_of
from keyseg_mm.runtime.export import REFUSED

_GATES = '_keyseg_gates'  # in a module's __dict__
#: The method by which models of the host are trained; those that have none are trained by their ``forward``.
TRAINING = 'loss'
Args = tuple[Any, ...]
Kwargs = dict[str, Any]
_RUNS = (TRAINING, 'predict', 'encode_decode', '_forward')  # methods by which models are run, besides ``forward``


class Gate(Secret):
    """What a gated module leads its inputs and its output through; this one changes nothing."""

    __slots__ = ()

    @property
    def public_id(self) -> str:
        return ''

    def enter(self, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
        """The arguments of ``forward``, before it gets them."""
        return args, kwargs

    def leave(self, output: Any) -> Any:
        """What ``forward`` returned, before the caller gets it."""
        return output

    def move(self, change: Callable[[Tensor], Tensor]) -> None:
        """Go where the module goes: ``change`` is what ``module.to()`` does to each of its tensors."""


class Watch(Gate):
    """A gate that is asked at every run of a module, by whichever of its methods."""

    __slots__ = ()

    def begin(self, model: nn.Module, name: str) -> bool:
        """A run begins, by the method of this name; tells whether it is to be checked."""
        raise NotImplementedError

    def check(self, model: nn.Module, name: str, output: Any) -> None:
        """A run has come to a result, which is about to be returned."""

    def end(self) -> None:
        """A run that began is over, whether it came to a result or to an error."""


class Refusal(Gate):
    """Lets nothing through; ``why`` is the error's text."""

    __slots__ = ('_why',)

    def __init__(self, why: str) -> None:
        self._why = why

    def enter(self, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
        raise NotFiredError(self._why)


def takes_gates(module: nn.Module) -> bool:
    """Whether a module's ``forward`` is that of its class."""
    return not isinstance(module, torch.jit.ScriptModule) and 'forward' not in module.__dict__


def gates_of(module: nn.Module) -> tuple[Gate, ...]:
    """The gates at a module, in the order in which they work."""
    found: tuple[Gate, ...] = module.__dict__.get(_GATES, ())
    return found


def add_gates(model: nn.Module, gates: Iterable[tuple[str, Gate]]) -> None:
    """Put gates at modules, each given with its module's name, behind those that these have; all or none.

    Raises:
        PointError: a module that takes no gates.
    """
    at: dict[str, list[Gate]] = {}
    for name, gate in gates:
        at.setdefault(name, []).append(gate)
    modules = {name: module_of(model, name) for name in at}
    for name, module in modules.items():
        if not takes_gates(module):
            raise PointError(
                f'{name}: its forward is not that of its class, and cannot be encrypted; name the module around it'
            )
    for name, module in modules.items():
        _set_gates(module, (*gates_of(module), *at[name]))


def remove_gates(model: nn.Module, gates: Iterable[Gate] | None = None) -> None:
    """Take these gates, by default all, off a model; modules that have none left get their old class back.

    Raises:
        PlanMismatchError: something else has changed a module's class since. The model stays as it is.
    """
    drop = None if gates is None else {id(gate) for gate in gates}
    left = {}
    for module in model.modules():
        kept = tuple(gate for gate in gates_of(module) if drop is not None and id(gate) not in drop)
        if len(kept) == len(gates_of(module)):
            continue
        if not kept and _gated_class(module) is not type(module):
            raise PlanMismatchError(
                f'something has changed the class of a {type(module).__name__} since it was protected; take that off '
                'first'
            )
        left[module] = kept
    for module, kept in left.items():
        _set_gates(module, kept)


@contextmanager
def without_gates(model: nn.Module) -> Iterator[None]:
    """Run the block with all gates off a model, and put them back after it.

    Raises:
        PlanMismatchError: see :func:`remove_gates`.
    """
    kept = {module: gates_of(module) for module in model.modules() if gates_of(module)}
    remove_gates(model)
    try:
        yield
    finally:
        for module, gates in kept.items():
            _set_gates(module, gates)


def is_bypassed(module: nn.Module) -> bool:
    """Whether another ``forward`` has taken the place of the one that leads through the gates."""
    gated = _gated_class(module)
    if gated is None or type(module).forward is not gated.forward:
        return True
    own = module.__dict__.get('forward')  # of the instance; torch.compile's leads back to that of the class
    own = getattr(own, '_torchdynamo_orig_callable', own)
    return own is not None and getattr(own, '__func__', None) is not gated.forward


def _gated_class(module: nn.Module) -> type[nn.Module] | None:
    return next((kind for kind in type(module).__mro__ if GATED in vars(kind)), None)


def _set_gates(module: nn.Module, gates: tuple[Gate, ...]) -> None:
    kind: Any = type(module)
    if not gates:
        del module.__dict__[_GATES]
        module.__class__ = vars(kind)[GATED]
        return
    module.__dict__[_GATES] = gates
    gated, watched = _gated_class(module), any(isinstance(gate, Watch) for gate in gates)
    if gated is None or gated is kind:
        module.__class__ = _gated(kind if gated is None else vars(gated)[GATED], watched)


@functools.cache
def _gated(base: Any, watched: bool) -> Any:
    """The subclass of a class whose modules lead what enters and what leaves through their gates.

    Args:
        base: the class.
        watched: there is a :class:`Watch` among the gates.
    """

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        for gate in self._keyseg_gates:
            args, kwargs = gate.enter(args, kwargs)
        output = base.forward(self, *args, **kwargs)
        for gate in self._keyseg_gates:
            output = gate.leave(output)
        return output

    def _apply(self: Any, fn: Any, *args: Any, **kwargs: Any) -> Any:
        base._apply(self, fn, *args, **kwargs)
        for gate in gates_of(self):
            gate.move(fn)
        return self

    members: dict[str, Any] = {name: getattr(base, name) for name in ('__module__', '__qualname__', '__doc__')}
    members |= {GATED: base, _GATES: (), '_apply': _apply, '__prepare_scriptable__': _refuse_script}
    members['forward'] = _dressed(forward, base.forward)
    if watched:
        runs = [name for name in _RUNS if hasattr(base, name)]
        for name in runs if TRAINING in runs else [*runs, 'forward']:
            members[name] = _dressed(_watched(name, members.get(name) or getattr(base, name)), getattr(base, name))
    members |= {'__reduce_ex__': Secret.__reduce_ex__, '__copy__': _copy}
    members['__deepcopy__'] = getattr(base, '__deepcopy__', _deepcopy)
    if issubclass(base, nn.TransformerEncoderLayer):
        members['activation_relu_or_gelu'] = property(lambda self: 0)  # keeps torch from its fused version
    try:  # the host picks initialisations by the names of a class and of its direct bases: these are among them
        return type(base)(base.__name__, (base, *base.__bases__), members)
    except TypeError:  # not every base may be named twice; Generic, for one
        return type(base)(base.__name__, (base,), members)


def _watched(name: str, old: Callable[..., Any]) -> Callable[..., Any]:
    """A method of a module whose runs are watched."""

    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        watches = [gate for gate in self._keyseg_gates if isinstance(gate, Watch)]
        asked = [watch for watch in watches if watch.begin(self, name)]
        try:
            output = old(self, *args, **kwargs)
            for watch in asked:
                watch.check(self, name, output)
            return output
        finally:
            for watch in watches:
                watch.end()

    return run


def _dressed(new: Any, old: Any) -> Any:
    """A method that looks like the one in whose place it stands."""
    functools.update_wrapper(new, old)
    del new.__wrapped__  # TorchScript would compile that
    new.__signature__ = inspect.signature(old)
    # torch.compile keeps a few versions of each code object: let classes not compete for them
    new.__code__ = new.__code__.replace()
    return new


def _refuse_script(self: nn.Module) -> NoReturn:
    """Asked by torch.jit.script for what to compile instead of a module."""
    raise SecretExposedError(REFUSED)


def _copy(self: nn.Module) -> nn.Module:
    twin = self.__new__(type(self))
    twin.__dict__.update(self.__dict__)
    return twin


def _deepcopy(self: nn.Module, memo: dict[int, Any]) -> Any:
    """What :mod:`copy` does to a module, by way of pickling, which gated ones refuse."""
    reduced: Any = object.__reduce_ex__(self, 4)
    twin = reduced[0](*reduced[1])
    memo[id(self)] = twin
    twin.__setstate__(copy.deepcopy(reduced[2], memo))
    return twin
