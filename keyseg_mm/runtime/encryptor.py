"""Encryptors: secret maps at work at the sites of a live model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from keyseg_mm.errors import NotFiredError
from keyseg_mm.maps import Map
from keyseg_mm.maps.base import Tables
from keyseg_mm.maps.carried import at_work
from keyseg_mm.model.outputs import tensors_given
from keyseg_mm.model.points import ROOT
from keyseg_mm.model.sites import Site, module_of
from keyseg_mm.runtime.export import refuse_export
from keyseg_mm.runtime.gates import Args, Gate, Kwargs, Watch, add_gates, gates_of, is_bypassed


class Encryptor(Gate):
    """A secret map at a site.

    Args:
        site: where it works.
        secret: the map.
        device, dtype: of the tensors that it will meet; the tables are there from the start.

    Attributes:
        site: where it works.
        map: the secret map.
        work: what it does to its feature map: that, or, at a ``back:`` point, its inverse.
        calls: how often it encrypted a feature map. What torch.compile made of it does not count.
        seen: where it marks that it has worked, by its point; see :class:`keyseg_mm.runtime.witness.Witness`.
        given: tables that are used in place of its own, see :func:`given_tables`.
    """

    __slots__ = ('site', 'map', 'work', 'calls', 'seen', 'given', '_name', '_kind', '_like', '_tables', '_inverse')

    def __init__(self, site: Site, secret: Map, device: torch.device, dtype: torch.dtype) -> None:
        self.site, self.calls, self._name = site, 0, str(site.point)
        self.seen: dict[str, bool] = {}
        self.given: Tables | None = None
        self._like = torch.empty(0, device=device, dtype=dtype)
        self.use(secret)

    def use(self, secret: Map) -> None:
        """Encrypt with another map from now on."""
        self.map, self.work, self._kind = secret, at_work(secret, self.site.point.side), type(secret)
        self._place()

    @property
    def public_id(self) -> str:
        return f'at {self.site.point}, {self.map.public_id}'

    def enter(self, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
        if self.site.point.side != 'in':
            return args, kwargs
        if not tensors_given(args, kwargs, self.site.inputs):
            raise NotFiredError(f'{self.site.point}: the module was not given its feature map as its first argument')
        return self.site.enter(args, kwargs, self._encrypt)

    def leave(self, output: Any) -> Any:
        if self.site.point.side == 'in':
            return output
        if self.given is None:
            refuse_export()
        self.seen[self._name] = True  # a pass may hand on fewer maps, and not this one
        return self.site.leave(output, self._encrypt)

    def move(self, change: Callable[[Tensor], Tensor]) -> None:
        self._like = change(self._like)
        self._place()

    def _encrypt(self, x: Tensor) -> Tensor:
        if self.given is not None:
            self.seen[self._name] = True
            self._kind.refuse_unfit(x, self.site.dim, self.site.channels)
            return self._kind.apply(x, self.site.dim, self.given)
        refuse_export()
        self.seen[self._name] = True
        if not torch.compiler.is_dynamo_compiling():
            self.calls += 1
            return self.work(x, self.site.dim)
        # Attributes that nothing here changes: the compiler makes inputs of its graph out of these tensors.
        self._kind.refuse_unfit(x, self.site.dim, self.site.channels)
        tables, inverse = (tuple(t.to(x.device) for t in ts) for ts in (self._tables, self._inverse))
        return self._kind.work(x, self.site.dim, tables, inverse)

    def _place(self) -> None:
        where = self._like.device, self._like.dtype
        self._tables, self._inverse = self.work.placed(*where), self.work.inverse().placed(*where)

    def __deepcopy__(self, memo: Any) -> Encryptor:
        """That of a copied module: one of its own, for the same map."""
        return Encryptor(self.site, self.map, self._like.device, self._like.dtype)


@contextmanager
def given_tables(encryptors: Sequence[Encryptor], tables: Sequence[Tables]) -> Iterator[None]:
    """Let encryptors work with these tables, and without a way back for gradients.

    An exporter may trace that: where the tables are inputs of what it traces, its graph holds none.
    """
    for encryptor, given in zip(encryptors, tables, strict=True):
        encryptor.given = given
    try:
        yield
    finally:
        for encryptor in encryptors:
            encryptor.given = None


def encryptors_for(model: nn.Module, sites: Iterable[Site], maps: Iterable[Map]) -> list[Encryptor]:
    """Encryptors with their tables where the modules of their sites are."""
    found, whole = [], _first_weight(model, torch.empty(0))
    for site, secret in zip(sites, maps):
        like = _first_weight(module_of(model, site.point.name), whole)
        found.append(Encryptor(site, secret, like.device, like.dtype))
    return found


def _first_weight(module: nn.Module, default: Tensor) -> Tensor:
    """A module's first floating-point parameter, found without listing all of them, which takes a large model long."""
    return next((p for p in module.parameters() if p.is_floating_point()), default)


def add_encryptors(model: nn.Module, encryptors: Iterable[Encryptor], watches: Iterable[Watch] = ()) -> list[Gate]:
    """Put encryptors at the modules of their sites, and watches at the model, all or none.

    Returns:
        All gates that were put. Besides the encryptors there is one at each of torch's transformer layers around them,
        whose fused version would never call the modules in it.

    Raises:
        PointError: a module that no encryptor can be put at.
    """
    gates: list[tuple[str, Gate]] = [(encryptor.site.point.name, encryptor) for encryptor in encryptors]
    for name, module in model.named_modules():
        inside = f'{name}.' if name else ''
        if isinstance(module, nn.TransformerEncoderLayer) and any(where.startswith(inside) for where, _ in gates):
            gates.append((name or ROOT, Gate()))
    gates += [(ROOT, watch) for watch in watches]
    add_gates(model, gates)
    return [gate for _, gate in gates]


def why_idle(modules: Mapping[str, nn.Module], encryptor: Encryptor) -> str:
    """What keeps an encryptor from working where its site is, in words; empty where nothing does.

    Args:
        modules: all of the model, by name.
        encryptor: of the model.
    """
    name = encryptor.site.point.name
    module = modules.get('' if name == ROOT else name)
    if module is None:
        return 'there is no such module any more'
    if not any(gate is encryptor for gate in gates_of(module)):
        return f'a {type(module).__module__}.{type(module).__name__} without its encryptor is there now'
    return 'another forward has taken the place of the encrypting one' if is_bypassed(module) else ''
