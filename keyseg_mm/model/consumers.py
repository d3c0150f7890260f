"""Who reads a feature map? Found by running the model once and watching every call that is given the map.

A map T at an ``out:`` point can be absorbed where all that reads it are layers that are linear in its channels. The
watching is torch's own: module hooks see the layers, a ``TorchFunctionMode`` sees whatever else is computed with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from keyseg_mm.model.layers import kind_of
from keyseg_mm.model.outputs import flat_tensors, tensors_given
from keyseg_mm.model.passes import OTHER_SIZE, Passes, watch_model
from keyseg_mm.model.points import ROOT
from keyseg_mm.model.sites import Site, Trace, module_of

# These ask what a tensor is like and compute nothing with its values.
_LOOKS = frozenset(
    ['__get__', 'size', 'dim', 'numel', 'stride', 'is_contiguous', 'is_floating_point', '__len__', 'type']
)


@dataclass
class Readers:
    """What reads one point's map.

    Attributes:
        layers: names of layers that read it and nothing else.
        others: everything else that reads it, in words.
    """

    layers: set[str] = field(default_factory=set)
    others: set[str] = field(default_factory=set)


def find_readers(model: nn.Module, sites: Iterable[Site], passes: Passes) -> dict[str, Readers]:
    """Run the passes and watch what reads the maps of ``out:`` sites.

    Args:
        model: the model to watch; as in :meth:`keyseg_mm.model.sites.Trace.of`.
        sites: of that model.
        passes: by name, functions that run the model once.

    Returns:
        By point.
    """
    return _Watch(model, [site for site in sites if site.point.side == 'out']).run(passes)


def readers_of(model: nn.Module, sites: Iterable[Site], trace: Trace) -> dict[str, Readers]:
    """:func:`find_readers` by the passes of a trace, or, where it has none, by a dry run.

    Args:
        model: the model.
        sites: of that model.
        trace: of that model.
    """
    wanted = list(sites)
    if all(site.point.side == 'in' for site in wanted):
        return {}
    if trace.model is not None and trace.passes is not None:
        return find_readers(trace.model, wanted, trace.passes)
    return watch_model(model, lambda double, passes: find_readers(double, wanted, passes))


def find_image_readers(model: nn.Module, images: Iterable[Tensor], passes: Passes) -> Readers:
    """Run the passes and watch what reads the images that they are run with.

    Args:
        model: the model to watch.
        images: the very tensors that the passes give the model.
        passes: by name, functions that run the model once.
    """
    watch, point = _Watch(model, []), 'images'
    watch.found[point] = Readers()
    return watch.run(passes, {id(image): (image, point) for image in images})[point]


class _Watch(TorchFunctionMode):
    """The hooks and the mode. A tensor is known by its identity, and kept, so that no other gets its id."""

    def __init__(self, model: nn.Module, sites: list[Site]) -> None:
        super().__init__()
        self.model, self.sites = model, sites
        self.tensors: dict[int, tuple[Tensor, str]] = {}
        self.calls: dict[str, set[str]] = {}  # layer -> the points whose maps it was given, '' for another map
        self.found = {str(site.point): Readers() for site in sites}
        self.stack: list[tuple[str, bool]] = [(ROOT, False)]
        self.handles: list[Any] = []

    def run(self, passes: Passes, given: Mapping[int, tuple[Tensor, str]] | None = None) -> dict[str, Readers]:
        """Run the passes, with the hooks on; they are removed again, come what may.

        Args:
            passes: by name, functions that run the model once.
            given: tensors that are known before a pass begins, by identity, each with its point.
        """
        try:
            self.start()
            with self:
                for run_pass in (found for name, found in passes.items() if name != OTHER_SIZE):
                    self.tensors = dict(given or {})
                    run_pass()
        finally:
            for handle in self.handles:
                handle.remove()
        return self.result()

    def start(self) -> None:
        """Hook all modules; a point's own hook comes after those of the stack, when its module is left."""
        for name, module in self.model.named_modules():
            self._hook_stack(name or ROOT, module)
        for site in self.sites:
            self.handles.append(module_of(self.model, site.point.name).register_forward_hook(self._note(site)))

    def _hook_stack(self, name: str, module: nn.Module) -> None:
        kind = kind_of(module)

        def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given = tensors_given(args, kwargs, kind.inputs) if kind else []
            points = {self._point(tensor) for tensor in given}
            if kind:
                self.calls.setdefault(name, set()).update(points or {''})
            self.stack.append((name, points not in (set(), {''})))

        def leave(*_: Any) -> None:
            self.stack.pop()

        self.handles += [
            module.register_forward_pre_hook(enter, with_kwargs=True),
            module.register_forward_hook(leave),
        ]

    def _note(self, site: Site) -> Callable[..., None]:
        def note(_: nn.Module, args: Any, output: Any) -> None:
            index = site.index_in(output)
            if index is not None:
                tensor = list(flat_tensors(output))[index]
                self.tensors[id(tensor)] = (tensor, str(site.point))

        return note

    def _point(self, value: Any) -> str:
        known = self.tensors.get(id(value)) if isinstance(value, Tensor) else None
        return known[1] if known else ''

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, '__name__', str(func))
        where, inside_reader = self.stack[-1]
        if name not in _LOOKS and not inside_reader:
            for tensor in flat_tensors([*args, *(kwargs or {}).values()]):
                if point := self._point(tensor):
                    self.found[point].others.add(f'{name} in {where}')
        return func(*args, **(kwargs or {}))

    def result(self) -> dict[str, Readers]:
        """Layers that were given other maps too are no readers that could absorb."""
        for layer, points in self.calls.items():
            for point in points - {''}:
                if len(points) == 1:
                    self.found[point].layers.add(layer)
                else:
                    self.found[point].others.add(f'{layer}, which reads other maps too')
        return self.found
