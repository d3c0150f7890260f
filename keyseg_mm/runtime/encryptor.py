"""Feature encryptors: a secret map at work in a live model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from keyseg_mm.entries import MapEntry
from keyseg_mm.keys.secret import Secret
from keyseg_mm.maps import Map
from keyseg_mm.model.sites import Site, module_of
from keyseg_mm.runtime.export import refuse_export, replace_tensor


class FeatureEncryptor(Secret):
    """The transform at one site, as a forward hook. Its tables are derived at the first call and kept.

    Attributes:
        site: where it works.
        calls: how often it encrypted a feature map.
    """

    __slots__ = ('site', 'entry', 'calls', '_derive', '_map')

    def __init__(self, site: Site, entry: MapEntry, derive: Callable[[MapEntry], Map]) -> None:
        self.site, self.entry, self.calls = site, entry, 0
        self._derive = derive
        self._map: Map | None = None

    @property
    def public_id(self) -> str:
        return str(self.entry)

    @property
    def map(self) -> Map:
        """The secret transform."""
        if self._map is None:
            self._map = self._derive(self.entry)
        return self._map

    def is_of(self, derive: Callable[[MapEntry], Map]) -> bool:
        """Whether its tables come from this method of a protection."""
        return self._derive == derive

    def forget(self) -> None:
        """Drop the tables: the salt has changed."""
        self._map = None

    def on_output(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Forward hook of an ``out:`` point."""
        index = self.site.index_in(output)
        if index is None:  # this pass hands on fewer maps, and not this one
            return output
        return self._encrypt(output) if isinstance(output, Tensor) else replace_tensor(output, index, self._encrypt)

    def on_input(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Forward pre-hook of an ``in:`` point."""
        return (self._encrypt(args[0]), *args[1:])

    def _encrypt(self, x: Tensor) -> Tensor:
        refuse_export(x)
        self.calls += 1
        return self.map(x, self.site.dim)


def hook_encryptors(model: nn.Module, encryptors: Sequence[FeatureEncryptor]) -> None:
    """Hook encryptors to their modules, all or none."""
    modules = [module_of(model, encryptor.site.point.name) for encryptor in encryptors]
    for encryptor, module in zip(encryptors, modules):
        if encryptor.site.point.side == 'out':
            module.register_forward_hook(encryptor.on_output)
        else:
            module.register_forward_pre_hook(encryptor.on_input)
