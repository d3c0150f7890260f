"""Running a module of the host once, small and harmlessly, to see which encryption points fire.

A segmentor is run the way the host's test and train loops run it (``predict`` and ``loss``), since auxiliary heads and
deep supervision run in training only. Any other module gets inputs made up from its ``in_channels``. It is a copy that
runs, with the same weights, so that the module itself stays as it was; so do the random states.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, TypeVar

import torch
from mmseg.models.segmentors.base import BaseSegmentor
from torch import Tensor, nn

from keyseg_mm.errors import PointError
from keyseg_mm.mm.inputs import inputs_of, is_head, noise, random_samples
from keyseg_mm.mm.sizes import ROOMY, SMALL, Image, Size, another, sizes_for
from keyseg_mm.model.passes import OTHER_SIZE, Passes, copied, register_watcher, undisturbed
from keyseg_mm.model.sites import Trace
from keyseg_mm.runtime.attach import detach

logger = logging.getLogger('keyseg_mm')
_Result = TypeVar('_Result')
Watch = Callable[[nn.Module, Passes], _Result]

_LARGEST_WEIGHT = 1e4  # no initialised or trained weight comes near it
_STD = 0.02  # of the values that stand in for weights which nobody has filled yet


class _LossError(Exception):
    """The host's training pass failed, with the cause."""


def trace_module(module: nn.Module, heads: bool = True) -> Trace:
    """Trace a segmentor, backbone, neck or head by running it on noise, in a ``test`` and a ``train`` pass.

    Args:
        module: a built module of the host; its weights may be uninitialised.
        heads: let a segmentor's heads take part; without them it is shorter, and enough for the maps of backbone and
            neck.

    Raises:
        PointError: it could not be run at any of the sizes tried; names the error of its own.
    """
    return replace(watch_module(module, Trace.of, heads), model=None, passes=None)  # the copy may go


def watch_module(
    module: nn.Module,
    watch: Watch[_Result],
    heads: bool = True,
    image: Image | None = None,
    smallest: int = SMALL,
    real: bool = False,
) -> _Result:
    """Let ``watch`` run a plain copy of the module, by the passes that it is given; see :func:`trace_module`.

    Where the training pass fails at all sizes, the model is run on without its losses, or in testing alone, which is
    logged.

    Args:
        module: of the host; encryptors on it are not on the copy.
        watch: gets the copy and its passes by name. Each returns what the host's ``predict`` or ``loss`` does, or the
            module's output.
        heads: see :func:`trace_module`.
        image: makes a batch of images (B, C, *size) for the module from B and size; by default noise.
        smallest: side length to begin with.
        real: run it with its weights as they are. By default those that are fresh memory, before init_weights, are
            drawn, so that losses can be computed; and one pass more is of another size.
    """

    def run(size: Size, loss: bool) -> _Result:
        is_meta = any(p.is_meta for p in module.parameters())  # as built by whoever says so for all new tensors
        with undisturbed(module.parameters()), torch.no_grad(), torch.device('cpu') if is_meta else nullcontext():
            double = _double(module, real)
            return watch(double, _passes(double, size, heads, image or noise, loss, real))

    return _at_a_size(module, run, *sizes_for(module, smallest))


def _at_a_size(module: nn.Module, run: Callable[[Size, bool], _Result], own: list[Size], others: list[Size]) -> _Result:
    """What a run gives at the first size where all of it works, or else without losses.

    Args:
        module: that runs.
        run: at a size, with losses or without.
        own, others: see :func:`keyseg_mm.mm.sizes.sizes_for`.
    """
    problems: dict[Size, Exception] = {}
    lossless: dict[Size, Exception] = {}
    for size in (*own, *others):
        if lossless and size not in own and max(size) > ROOMY:
            break
        try:
            return run(size, True)
        except _LossError as error:
            lossless[size] = error
        except Exception as error:  # the host raises whatever it likes for a size that does not suit it
            problems[size] = error
    if not lossless:
        raise PointError(_why_not(module, problems))
    size, problem = next(iter(lossless.items()))
    _say(
        f'the training pass of this {type(module).__name__} does not run here ({problem}): its losses are left out, '
        'and what is proved of it holds for testing alone'
    )
    return run(size, False)


def _why_not(module: nn.Module, problems: dict[Size, Exception]) -> str:
    """Why a module could not be run: at a size that it was made for, if one is known, else at the last one tried."""
    made_for = [size for size in sizes_for(module)[0][1:] if size in problems]
    size = made_for[0] if made_for else list(problems)[-1]
    where = f'{size[0]}x{size[1]}' + (', the size it was made for' if made_for else '')
    return (
        f'could not run this {type(module).__name__} at {where}, to see which points fire: '
        f'{type(problems[size]).__name__}: {problems[size]}'
    )


@functools.cache
def _say(text: str) -> None:
    """Once."""
    logger.warning(text)


def _double(module: nn.Module, real: bool) -> nn.Module:
    """A copy of the module that shares its weights and nothing else.

    Its statistics, modes and whatever it keeps in Python objects can change without harm: the host's CLIP text encoder,
    for one, remembers its embeddings, and those of the weights before a checkpoint is loaded would be used ever after.
    """
    memo: dict[int, Tensor] = {id(b): torch.zeros_like(b, device='cpu') for b in module.buffers() if b.is_meta}
    for p in module.parameters():
        if p.is_meta:  # nothing of it is there yet
            memo[id(p)] = nn.Parameter(torch.zeros_like(p, device='cpu'), p.requires_grad)
            continue
        memo[id(p)] = p if real or not _is_fresh(p) else nn.Parameter(_drawn(p), p.requires_grad)
    double = copied(module, memo)
    detach(double)  # what there is to see is the plain model
    return double


def _is_fresh(weight: Tensor) -> bool:
    """Whether a weight is memory that nobody has filled yet: numbers that no weight has, NaN, or zeros all over."""
    if not weight.numel():
        return False
    largest = weight.abs().max()
    return not largest < _LARGEST_WEIGHT or (weight.dim() > 1 and not largest > 0)


def _drawn(weight: Tensor) -> Tensor:
    """Small values, always the same: of zeros the host's losses may have no direction, and then they are NaN."""
    draw = torch.Generator(weight.device).manual_seed(0)
    return torch.empty_like(weight).normal_(std=_STD, generator=draw)


def _passes(module: nn.Module, size: Size, heads: bool, image: Image, loss: bool, real: bool) -> Passes:
    """The passes of a copy, which may be changed; without ``loss`` the training pass may fail, or do without it."""
    passes: dict[str, Callable[[], object]]
    if isinstance(module, BaseSegmentor):
        one, two = image(module, 1, size), image(module, 2, size)  # batch norm refuses a single value per channel
        passes = {'test': lambda: _test(module, one, heads), 'train': lambda: _train(module, two, heads)}
        passes[OTHER_SIZE] = lambda: _test(module, noise(module, 1, another(size)), heads)
    else:
        passes = {'test': lambda: _to_test(module)(*inputs_of(module, size))}
        if not is_head(module):  # a head is trained by its loss, which needs more than its inputs
            passes['train'] = lambda: _to_train(module)(*inputs_of(module, size))
        passes[OTHER_SIZE] = lambda: _to_test(module)(*inputs_of(module, another(size)))
    if 'train' in passes:
        passes['train'] = _watched(passes['train']) if loss else _lossless(module, passes['train'])
    passes[OTHER_SIZE] = _tolerant(passes[OTHER_SIZE])
    if real:
        del passes[OTHER_SIZE]
    return passes


def _watched(run: Callable[[], object]) -> Callable[[], object]:
    def watched() -> object:
        try:
            return run()
        except Exception as error:
            raise _LossError(f'{type(error).__name__}: {error}') from error

    return watched


def _tolerant(run: Callable[[], object]) -> Callable[[], object]:
    def tolerant() -> object:
        try:
            return run()
        except Exception:  # whatever the host raises: what was seen by then counts
            return {}

    return tolerant


def _lossless(module: nn.Module, run: Callable[[], object]) -> Callable[[], object]:
    """A training pass of which the layers count, and no loss."""
    for part in module.modules():
        if hasattr(part, 'loss_by_feat'):
            vars(part)['loss_by_feat'] = lambda *args, **kwargs: {}
    return _tolerant(run)


def _test(model: BaseSegmentor, inputs: Tensor, heads: bool) -> object:
    if heads:
        return _to_test(model).predict(inputs, random_samples(model, inputs))
    return _features(_to_test(model), inputs)


def _train(model: BaseSegmentor, inputs: Tensor, heads: bool) -> object:
    if heads:
        return _summed(_to_train(model).loss(inputs, random_samples(model, inputs)))
    return _features(_to_train(model), inputs)


def _summed(losses: Mapping[str, object]) -> object:
    """What the host sums up: the shares of right pixels beside it jump from pixel to pixel."""
    return {name: value for name, value in losses.items() if 'loss' in name}


def _features(model: Any, inputs: Tensor) -> object:
    """Backbone and neck alone; a depth estimator's backbone may want to know the category of the picture too."""
    if 'batch_img_metas' in inspect.signature(model.extract_feat).parameters:
        return model.extract_feat(inputs, [sample.metainfo for sample in random_samples(model, inputs)])
    return model.extract_feat(inputs)


def _to_test(module: Any) -> Any:
    module.eval()  # its result is not to be relied on: some of the host's backbones return None
    return module


def _to_train(module: Any) -> Any:
    module.train()
    for part in module.modules():
        if isinstance(part, nn.SyncBatchNorm):  # in a distributed run it would wait for the GPUs of all processes
            part.eval()
    return module


register_watcher(watch_module)
