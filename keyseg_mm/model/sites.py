"""Sites: the points of a model that fire, found by running it once.

A hook on a module that the host never calls would protect nothing, so a point that does not fire is an error.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from keyseg_mm.errors import PointError
from keyseg_mm.model.layers import KINDS, Kind, is_depthwise, kind_of
from keyseg_mm.model.outputs import flat_tensors, form_of, replace_inputs, replace_tensor, tensors_given
from keyseg_mm.model.passes import OTHER_SIZE, Passes, watch_model
from keyseg_mm.model.points import PRESETS, ROOT, Point

_BACKBONES = ('backbone', 'image_encoder')
_UNLIKE = '{} returns other maps in training than in testing, and which is which is not clear; name points in it'

_Seen = dict[tuple[str, str], dict[int, dict[int, 'Site']]]  # (side, name) -> form -> index -> site


@dataclass(frozen=True)
class Site:
    """A point that fires, with what a run of the model showed of it.

    Attributes:
        point: where.
        channels: size of the channel dimension.
        dim: channel dimension, counted from the front (1 for NCHW) or from the back (-1 for tokens (B, N, C)).
        shape: one shape seen there.
        layer: class name of the module.
        runs: names of the passes in which it fired, as ``('test', 'train')``.
        forms: for every form in which the module was seen to return (0: a single tensor, n: n tensors), which of the
            tensors is this map, or None if it is not among them. Some backbones return more maps in training.
        inputs: names of the arguments that are this map, at an ``in:`` point.
    """

    point: Point
    channels: int
    dim: int
    shape: tuple[int, ...]
    layer: str
    runs: tuple[str, ...] = ()
    forms: tuple[tuple[int, int | None], ...] = ()
    inputs: tuple[str, ...] = Kind().inputs

    def enter(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], change: Callable[[Tensor], Tensor]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of the module, with this map changed if it enters there."""
        names = self.inputs if self.point.side == 'in' else ()
        return replace_inputs(args, kwargs, names, change)

    def leave(self, output: Any, change: Callable[[Tensor], Tensor]) -> Any:
        """What the module returned, with this map changed if it leaves there, and is handed on in this pass."""
        index = None if self.point.side == 'in' else self.index_in(output)
        return output if index is None else replace_tensor(output, index, change)

    def seen_at(self, shape: tuple[int, ...]) -> Site:
        """The site, of which another shape was seen, of an image of another size: channels are what stays."""
        alike = len(shape) == len(self.shape)
        same = [dim for dim in range(1, len(shape)) if alike and shape[dim] == self.shape[dim]]
        if len(same) != 1 or same[0] == self.dim % len(shape):
            return self
        return replace(self, channels=shape[same[0]], dim=-1 if same[0] == len(shape) - 1 else same[0])

    def index_in(self, output: Any) -> int | None:
        """Which of an output's tensors is this map; None if it is not among them, as seen in the dry run.

        Raises:
            PointError: the module returned in another form than it was seen to.
        """
        if not self.forms or self.point.side != 'out':
            return self.point.index or 0
        form = form_of(output)
        for seen, index in self.forms:
            if seen == form:
                return index
        raise PointError(
            f'{self.point}: the module returned {form or "a single"} map(s), which it did not in the dry run; what it '
            'returns must depend on nothing but training or testing'
        )


@dataclass
class Trace:
    """All points of a model that fired in the given passes.

    Attributes:
        sites: by point, in the order of the calls.
        several: names of modules that return several tensors, with their number.
        unlike: names of modules that return other maps in one pass than in another, and nobody can tell which is which.
        model, passes: what was run, if it may be run again to see more.
    """

    sites: dict[Point, Site] = field(default_factory=dict)
    several: dict[str, int] = field(default_factory=dict)
    unlike: set[str] = field(default_factory=set)
    model: nn.Module | None = field(default=None, repr=False, compare=False)
    passes: Passes | None = field(default=None, repr=False, compare=False)

    @classmethod
    def of(cls, model: nn.Module, passes: Passes) -> Trace:
        """Run the passes with watching hooks on every module; the hooks are removed again, come what may.

        Args:
            model: the model to watch.
            passes: by name, functions that run the model once. They take care of gradients, modes and statistics.
                See :data:`keyseg_mm.model.passes.OTHER_SIZE` for one that counts otherwise.
        """
        seen: _Seen = {}
        current = ['']
        handles = []
        try:
            for name, module in model.named_modules():
                watch = _Watch(seen, name or ROOT, module, current)
                handles.append(module.register_forward_hook(watch.output))
                if watch.kind is not None:
                    handles.append(module.register_forward_pre_hook(watch.input, with_kwargs=True))
            for current[0], run in passes.items():
                run()
        finally:
            for handle in handles:
                handle.remove()
        trace = cls(model=model, passes=passes)
        for (_, name), forms in seen.items():
            trace._join(name, forms)
        return trace

    @classmethod
    def by_dry_run(cls, model: nn.Module) -> Trace:
        """The trace of a model that somebody here knows how to run; see :func:`keyseg_mm.model.passes.watch_model`."""
        return replace(watch_model(model, cls.of), model=None, passes=None)

    def _join(self, name: str, forms: dict[int, dict[int, Site]]) -> None:
        """Take over a module's sites; those of its form with the most tensors stand for the same maps in the others.

        A map is known again by its channels, which is refused where two maps of a form have the same number.
        """
        widest = max(forms)
        if widest:
            self.several[name] = widest
        places: dict[int, dict[int, int]] = {index: {widest: index} for index in forms[widest]}
        for form in set(forms) - {widest}:
            for index, site in forms[form].items():
                same = [i for i, s in forms[widest].items() if (s.channels, s.dim) == (site.channels, site.dim)]
                if len(same) != 1 or form in places[same[0]]:
                    self.unlike.add(name)
                    return
                places[same[0]][form] = index
        for index, site in forms[widest].items():
            known = tuple((form, places[index].get(form)) for form in forms)
            runs = dict.fromkeys(run for form, i in known if i is not None for run in forms[form][i].runs)
            self.sites[site.point] = replace(site, runs=tuple(runs), forms=known)


class _Watch:
    """The watching hooks of one module."""

    def __init__(self, seen: _Seen, name: str, module: nn.Module, current: list[str]) -> None:
        self.seen, self.name, self.current = seen, name, current
        self.layer, self.kind = type(module).__name__, kind_of(module)
        self.inputs = self.kind.inputs if self.kind else Kind().inputs
        self.first = isinstance(module, _ConvNd)
        self.last = isinstance(module, nn.LayerNorm) or (self.kind is not None and self.kind.dim == -1)
        self.again: set[tuple[Point, int]] = set()  # seen at another size

    def _note(self, point: Point, form: int, x: Tensor) -> None:
        if not x.is_floating_point() or x.dim() < 2:
            return
        dim = -1 if self.last or (x.dim() < 4 and not self.first) else 1
        where, index = (point.side, self.name), point.index or 0
        if self.current[0] == OTHER_SIZE:
            sites = self.seen.get(where, {}).get(form, {})
            if index in sites and not (self.first or self.last) and (point, form) not in self.again:
                self.again.add((point, form))
                sites[index] = sites[index].seen_at(tuple(x.shape))
            return
        sites = self.seen.setdefault(where, {}).setdefault(form, {})
        site = sites.setdefault(index, Site(point, x.shape[dim], dim, tuple(x.shape), self.layer, inputs=self.inputs))
        if self.current[0] not in site.runs:
            sites[index] = replace(site, runs=(*site.runs, self.current[0]))

    def output(self, module: nn.Module, args: Any, output: Any) -> None:
        form = form_of(output)
        for index, tensor in enumerate(flat_tensors(output)):
            self._note(Point('out', self.name, index if form else None), form, tensor)
            if index == 0 and self.kind is not None and self.kind.rows:
                self._note(Point('back', self.name), 0, tensor)

    def input(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        for tensor in tensors_given(args, kwargs, self.inputs)[:1]:
            self._note(Point('in', self.name), 0, tensor)


def resolve(points: str | Iterable[str], model: nn.Module, trace: Trace) -> list[Site]:
    """Turn points and presets into sites.

    Args:
        points: a point or preset, or several.
        model: the traced model.
        trace: what fired in it.

    Returns:
        Sites without repetition, in the order given, presets in the order of the calls.

    Raises:
        PointError: all that is wrong with the points, in one message.
    """
    wanted = [points] if isinstance(points, str) else list(points)
    sites: dict[Point, Site] = {}
    problems = [] if wanted else ['no encryption points given']
    for text in wanted:
        try:
            found = _preset(text, model, trace) if text in PRESETS else [_single(Point.parse(text), model, trace)]
        except PointError as error:
            problems.append(str(error))
        else:
            sites.update((site.point, site) for site in found)
    if problems:
        raise PointError('; '.join(problems))
    return list(sites.values())


def module_of(model: nn.Module, name: str) -> nn.Module:
    """The module of a point's name."""
    return model if name == ROOT else model.get_submodule(name)


def _preset(name: str, model: nn.Module, trace: Trace) -> list[Site]:
    if name == 'linear':
        inside = [s for p, s in trace.sites.items() if p.side != 'out']
        found = [s for s in inside if not is_depthwise(module_of(model, s.point.name), s.channels)]
        where = 'a convolution or Linear that is called'
    else:
        children = _BACKBONES if name == 'stages' else ('neck',)
        owner = next((child for child in children if getattr(model, child, None) is not None), None)
        if owner is None and name == 'neck':
            raise PointError("preset 'neck': this model has no neck; use 'stages', or add a keyseg_mm.KeyedNeck")
        where = owner or ROOT
        if where in trace.unlike:
            raise PointError(f'preset {name!r}: {_UNLIKE.format(where)}')
        found = [s for p, s in trace.sites.items() if p.side == 'out' and p.name == where]
    found = [site for site in found if site.channels > 1]  # of a single channel there is nothing to hide
    if not found:
        raise PointError(f'preset {name!r} matches nothing in this {type(model).__name__}: no map of {where} fired')
    return found


def _single(point: Point, model: nn.Module, trace: Trace) -> Site:
    module_at(point, model)
    site = trace.sites.get(point)
    if site is None:
        raise PointError(_why_not(point, trace))
    return site


def module_at(point: Point, model: nn.Module) -> nn.Module:
    """The module of a point, which may be encrypted there.

    Raises:
        PointError: there is no such module, or it takes no such point.
    """
    try:
        module = module_of(model, point.name)
    except AttributeError:
        names = [name or ROOT for name, _ in model.named_modules()]
        near = difflib.get_close_matches(point.name, names, n=3, cutoff=0.4)
        hint = f'; nearest: {", ".join(near)}' if near else ''
        raise PointError(f'{point}: no module of that name in this {type(model).__name__}{hint}') from None
    kind = kind_of(module)
    if point.side != 'out' and (kind is None or not kind.carriers(point.side)):
        takes = [name for name, one in KINDS.items() if one.carriers(point.side)]
        raise PointError(f'{point}: is a {type(module).__name__}; {point.side}: takes a {", ".join(takes)}')
    if isinstance(module, _BatchNorm):
        raise PointError(f'{point}: the host may swap a batch norm for another one; name the module around it')
    return module


def _why_not(point: Point, trace: Trace) -> str:
    if point.side == 'out' and point.name in trace.unlike:
        return f'{point}: {_UNLIKE.format(point.name)}'
    count = trace.several.get(point.name)
    if point.side == 'out' and count:
        return f'{point}: returns {count} maps; name one of out:{point.name}:0 to out:{point.name}:{count - 1}'
    if point.index is not None and Point('out', point.name) in trace.sites:
        return f'{point}: returns a single map; write out:{point.name}'
    return (
        f'{point}: never fires: the host does not call this module, or hands on no feature map there '
        '(decode heads, for one, are not called; the layers in them are)'
    )
