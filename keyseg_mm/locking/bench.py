"""Benches on which locks are proved: whoever knows a host registers one; any other model brings passes of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from keyseg_mm.entries import MapEntry
from keyseg_mm.errors import LockError
from keyseg_mm.locking.proof import Bench, Outputs
from keyseg_mm.maps import Map
from keyseg_mm.maps.carried import at_work
from keyseg_mm.maps.pixels import BlockCipher
from keyseg_mm.model.passes import OTHER_SIZE, Passes, seed, undisturbed
from keyseg_mm.model.sites import Site, Trace, module_of

_BENCHES: list[Bench] = []


def register_bench(bench: Bench) -> None:
    """Make a way to run models for a proof known; the last one registered is taken."""
    _BENCHES.append(bench)


def bench_for(trace: Trace | None) -> Bench | None:
    """The passes of a trace, where it has some, or what is registered; None where there is nothing."""
    if trace is not None and trace.model is not None and trace.passes is not None:
        return PassesBench(trace.model, trace.passes)
    return _BENCHES[-1] if _BENCHES else None


class PassesBench:
    """Runs a model by the passes of its trace, with other weights for as long as that takes.

    Args:
        model: that the passes run.
        passes: each returns what the model gives.
    """

    def __init__(self, model: nn.Module, passes: Passes) -> None:
        self._model, self._passes = model, passes

    def run(
        self,
        model: nn.Module,
        maps: Sequence[tuple[Site, MapEntry, Map]] = (),
        cipher: BlockCipher | None = None,
        whole: bool = False,
    ) -> Outputs:
        """All floating-point tensors that the passes return; see :class:`keyseg_mm.locking.proof.Bench`."""
        if cipher is not None:
            raise LockError('how this model is given images is not known, and whether it reads encrypted ones neither')
        own = {name: value.clone() for name, value in self._model.state_dict().items() if isinstance(value, Tensor)}
        handles = []
        outputs: Outputs = {}
        try:
            self._model.load_state_dict(model.state_dict(), strict=False)
            handles += [_encrypt(self._model, site, secret) for site, _, secret in maps]
            with undisturbed(self._model.parameters()), torch.no_grad():
                for name, run_pass in self._passes.items():
                    if name != OTHER_SIZE:
                        seed()
                        outputs.update((f'{name}{at}', t.detach().clone()) for at, t in _tensors(run_pass()))
        finally:
            for handle in handles:
                handle.remove()
            self._model.load_state_dict(own, strict=False)
        if not outputs:
            raise LockError(
                'the passes of this trace return nothing that could be compared, and the lock cannot be proved: let '
                "them return what the model gives, as {'test': lambda: model(inputs)}"
            )
        return outputs


def _encrypt(model: nn.Module, site: Site, secret: Map) -> Any:
    """A hook that does for a short while what an encryptor does."""
    module, work = module_of(model, site.point.name), partial(at_work(secret, site.point.side), dim=site.dim)
    if site.point.side == 'in':
        return module.register_forward_pre_hook(lambda _, args, kw: site.enter(args, kw, work), with_kwargs=True)
    return module.register_forward_hook(lambda _, args, output: site.leave(output, work))


def _tensors(value: Any, where: str = '') -> list[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        return [(where, value)] if value.is_floating_point() else []
    if isinstance(value, Mapping):
        return [found for name, item in value.items() for found in _tensors(item, f'{where} {name}')]
    items = value if isinstance(value, (list, tuple)) else ()
    return [found for index, item in enumerate(items) for found in _tensors(item, f'{where} {index}')]
