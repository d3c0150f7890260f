"""Running a module of the host once, small and harmlessly, to see which encryption points fire.

A segmentor is run the way the host's test and train loops run it (``predict`` and ``loss``), since auxiliary heads and
deep supervision run in training only. Any other module gets inputs made up from its ``in_channels``. It is a copy that
runs, with the same weights, so that the module itself stays as it was; so do the random states.
"""

from __future__ import annotations

import copy
import inspect
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import torch
from mmengine.structures import PixelData
from mmseg.models.segmentors.base import BaseSegmentor
from mmseg.structures import SegDataSample
from torch import Tensor, nn

from keyseg_mm.errors import PointError
from keyseg_mm.model.passes import Passes, register_watcher
from keyseg_mm.model.sites import Trace
from keyseg_mm.runtime.attach import detach

_Result = TypeVar('_Result')
Image = Callable[[nn.Module, int, int], Tensor]

# Side lengths tried in turn: most models run at the smallest, some need room for their pooling, windows or crops.
SIDES = (64, 128, 224, 256, 384, 512, 640)
_LARGEST_WEIGHT = 1e4  # no initialised or trained weight comes near it


def trace_module(module: nn.Module, heads: bool = True) -> Trace:
    """Trace a segmentor, backbone, neck or head by running it on noise, in a ``test`` and a ``train`` pass.

    Args:
        module: a built module of the host; its weights may be uninitialised.
        heads: let a segmentor's heads take part; without them it is shorter, and enough for the maps of backbone and
            neck.

    Raises:
        PointError: it could not be run at any of the sides tried; names the last error.
    """
    return replace(watch_module(module, Trace.of, heads), model=None, passes=None)  # the copy may go


def watch_module(
    module: nn.Module,
    watch: Callable[[nn.Module, Passes], _Result],
    heads: bool = True,
    image: Image | None = None,
    smallest: int = SIDES[0],
) -> _Result:
    """Let ``watch`` run a plain copy of the module, by the passes that it is given; see :func:`trace_module`.

    Args:
        module: of the host; encryptors on it are not on the copy.
        watch: gets the copy and its passes by name. Each returns what the host's ``predict`` or ``loss`` does, or the
            module's output.
        heads: see :func:`trace_module`.
        image: makes a batch of images (B, C, side, side) for the module from B and side; by default noise.
        smallest: side length to begin with; smaller ones come last, for models made for just one of them.
    """
    problem: Exception | None = None
    for side in sorted(SIDES, key=lambda side: side < smallest):
        try:
            with undisturbed(module.parameters()), torch.no_grad():
                double = _double(module)
                return watch(double, _passes(double, side, heads, image or _image))
        except Exception as error:  # the host raises whatever it likes for a size that does not suit it
            problem = error
    raise PointError(
        f'could not run this {type(module).__name__} to see which points fire: {type(problem).__name__}: {problem}'
    )


@contextmanager
def undisturbed(tensors: Iterable[Tensor] = ()) -> Iterator[None]:
    """Run the block and put all random states back after it, those of the tensors' devices too."""
    states = random.getstate(), np.random.get_state()
    devices = sorted({p.device.index for p in tensors if p.device.type == 'cuda'})
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


def _double(module: nn.Module) -> nn.Module:
    """A copy of the module that shares its weights and nothing else.

    Its statistics, modes and whatever it keeps in Python objects can change without harm: the host's CLIP text encoder,
    for one, remembers its embeddings, and those of the weights before a checkpoint is loaded would be used ever after.
    Weights that are fresh memory, before init_weights, are zeros in it, so that losses can be computed.
    """
    memo: dict[int, nn.Parameter] = {}
    for p in module.parameters():
        fresh = p.numel() > 0 and not p.abs().max() < _LARGEST_WEIGHT  # so that NaN counts as fresh memory too
        memo[id(p)] = nn.Parameter(torch.zeros_like(p), p.requires_grad) if fresh else p
    double = copy.deepcopy(module, memo)
    detach(double)  # what there is to see is the plain model
    return double


def _passes(module: nn.Module, side: int, heads: bool, image: Image) -> Passes:
    if isinstance(module, BaseSegmentor):
        one, two = image(module, 1, side), image(module, 2, side)  # batch norm refuses a single value per channel
        return {'test': lambda: _test(module, one, heads), 'train': lambda: _train(module, two, heads)}
    passes: dict[str, Callable[[], object]] = {'test': lambda: _to_test(module)(_inputs(module, side))}
    if not _is_head(module):  # a head is trained by its loss, which needs more than its inputs
        passes['train'] = lambda: _to_train(module)(_inputs(module, side))
    return passes


def _test(model: BaseSegmentor, inputs: Tensor, heads: bool) -> object:
    if heads:
        return _to_test(model).predict(inputs, _samples(model, inputs))
    return _features(_to_test(model), inputs)


def _train(model: BaseSegmentor, inputs: Tensor, heads: bool) -> object:
    if heads:
        return _to_train(model).loss(inputs, _samples(model, inputs))
    return _features(_to_train(model), inputs)


def _features(model: Any, inputs: Tensor) -> object:
    """Backbone and neck alone; a depth estimator's backbone may want to know the category of the picture too."""
    if 'batch_img_metas' in inspect.signature(model.extract_feat).parameters:
        return model.extract_feat(inputs, [sample.metainfo for sample in _samples(model, inputs)])
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


def _image(module: nn.Module, batch: int, side: int) -> Tensor:
    parameter = next(module.parameters(), torch.empty(0))
    channels = next((m.weight.shape[1] * m.groups for m in module.modules() if isinstance(m, nn.Conv2d)), 3)
    return torch.rand(batch, channels, side, side, device=parameter.device)


def _samples(model: Any, inputs: Tensor) -> list[SegDataSample]:
    """Data samples with random labels and depths."""
    classes, size = int(getattr(model, 'num_classes', None) or model.decode_head.num_classes or 2), inputs.shape[2:]
    samples = data_samples(torch.randint(0, max(classes, 2), (len(inputs), *size), device=inputs.device))
    for sample in samples:
        sample.gt_depth_map = PixelData(data=torch.rand(1, *size, device=inputs.device) + 0.5)
    return samples


def data_samples(labels: Tensor) -> list[SegDataSample]:
    """Data samples with labels (B, H, W), as the host's data pipeline would make them."""
    samples = []
    for label in labels:
        sample = SegDataSample(metainfo=metainfo(tuple(label.shape)))
        sample.gt_sem_seg = PixelData(data=label[None])
        sample.gt_edge_map = PixelData(data=_edges(label)[None])
        samples.append(sample)
    return samples


def metainfo(size: tuple[int, ...]) -> dict[str, Any]:
    """What the host wants to know of an image (height, width) that nothing was done to."""
    meta = {'ori_shape': size, 'img_shape': size, 'pad_shape': size, 'padding_size': [0, 0, 0, 0]}
    return {**meta, 'flip': False, 'scale_factor': (1.0, 1.0), 'category_id': 0}


def _edges(label: Tensor) -> Tensor:
    """Where a label map changes, as int64 0 and 1; what boundary-aware heads are trained with."""
    edge = torch.zeros_like(label)
    edge[:, 1:] |= (label[:, 1:] != label[:, :-1]).to(label.dtype)
    edge[1:] |= (label[1:] != label[:-1]).to(label.dtype)
    return edge


def _is_head(module: nn.Module) -> bool:
    return hasattr(module, 'conv_seg') or hasattr(module, 'input_transform')


def _inputs(module: Any, side: int) -> Any:
    """An image for a backbone, or the maps of a pyramid that a neck or head declares by ``in_channels``."""
    channels = getattr(module, 'in_channels', None)
    is_head = _is_head(module)
    if isinstance(channels, int) and not is_head or channels is None:
        return _image(module, 2, side)
    widths = [channels] if isinstance(channels, int) else list(channels)
    maps = [torch.rand(2, c, max(side >> (i + 2), 1), max(side >> (i + 2), 1)) for i, c in enumerate(widths)]
    if is_head:  # heads pick their maps out of the backbone's by in_index
        index = getattr(module, 'in_index', -1)
        index = [index] if isinstance(index, int) else list(index)
        slots = [maps[0]] * (max(max(index), len(maps) - 1) + 1)
        for i, m in zip(index, maps):
            slots[i] = m
        return slots
    return maps


register_watcher(watch_module)
