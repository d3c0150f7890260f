"""Running a module of the host once, small and harmlessly, to see which encryption points fire.

A segmentor is run the way the host's test and train loops run it (``predict`` and ``loss``), since auxiliary heads and
deep supervision run in training only. Any other module gets inputs made up from its ``in_channels``. Weights,
statistics, modes, gradients and random states are afterwards what they were.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from mmengine.structures import PixelData
from mmseg.models.segmentors.base import BaseSegmentor
from mmseg.structures import SegDataSample
from torch import Tensor, nn

from keyseg_mm.errors import PointError
from keyseg_mm.points import Trace

# Side lengths tried in turn: most models run at the smallest, some need room for their pooling, windows or crops.
SIDES = (64, 128, 224, 256, 384, 512, 640)


def trace_module(module: nn.Module, runs: tuple[str, ...] = ('test', 'train')) -> Trace:
    """Trace a segmentor, backbone, neck or head by running it on noise.

    Args:
        module: a built module of the host; its weights may be uninitialised.
        runs: passes wanted. A module that is no segmentor knows only ``test``.

    Raises:
        PointError: it could not be run at any of the sides tried; names the last error.
    """
    problem: Exception | None = None
    for side in SIDES:
        try:
            with undisturbed(module):
                return Trace.of(module, _passes(module, side, runs))
        except Exception as error:  # the host raises whatever it likes for a size that does not suit it
            problem = error
    raise PointError(
        f'could not run this {type(module).__name__} to see which points fire: {type(problem).__name__}: {problem}'
    )


@contextmanager
def undisturbed(module: nn.Module) -> Iterator[None]:
    """Run the block without gradients and put back weights' statistics, modes and all random states after it."""
    modes = {m: m.training for m in module.modules()}
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    states = random.getstate(), np.random.get_state()
    devices = sorted({p.device.index for p in module.parameters() if p.device.type == 'cuda'})
    try:
        with torch.random.fork_rng(devices=devices), torch.no_grad(), _finite_weights(module):
            yield
    finally:
        for m, mode in modes.items():
            m.training = mode
        for name, buffer in module.named_buffers():
            if name in buffers and buffer.shape == buffers[name].shape:
                buffer.copy_(buffers[name])
        random.setstate(states[0])
        np.random.set_state(states[1])


@contextmanager
def _finite_weights(module: nn.Module) -> Iterator[None]:
    """Zero weights that hold no finite numbers (fresh memory, before init_weights), so that losses can be computed."""
    bad = [p for p in module.parameters() if p.numel() and not torch.isfinite(p).all()]
    kept = [p.detach().clone() for p in bad]
    for p in bad:
        p.zero_()
    try:
        yield
    finally:
        for p, old in zip(bad, kept):
            p.copy_(old)


def _passes(module: nn.Module, side: int, runs: tuple[str, ...]) -> Mapping[str, Callable[[], object]]:
    if not isinstance(module, BaseSegmentor):
        module.eval()  # some host modules' eval() returns None
        return {'test': lambda: module(_inputs(module, side))}
    passes: dict[str, Callable[[], object]] = {
        'test': lambda: _predict(module, side),
        'train': lambda: _loss(module, side),
    }
    return {name: passes[name] for name in runs}


def _predict(model: BaseSegmentor, side: int) -> None:
    model.eval()
    inputs = _image(model, 1, side)
    model.predict(inputs, _samples(model, inputs))


def _loss(model: BaseSegmentor, side: int) -> None:
    model.train()
    for module in model.modules():
        if isinstance(module, nn.SyncBatchNorm):  # in a distributed run it would wait for the GPUs of all processes
            module.eval()
    inputs = _image(model, 2, side)  # two images: batch norm refuses a single value per channel
    model.loss(inputs, _samples(model, inputs))


def _image(module: nn.Module, batch: int, side: int) -> Tensor:
    parameter = next(module.parameters(), torch.empty(0))
    channels = next((m.weight.shape[1] * m.groups for m in module.modules() if isinstance(m, nn.Conv2d)), 3)
    return torch.rand(batch, channels, side, side, device=parameter.device)


def _samples(model: Any, inputs: Tensor) -> list[SegDataSample]:
    """Data samples with random labels and depths, as the host's data pipeline would make them."""
    size = tuple(inputs.shape[2:])
    classes = int(getattr(model, 'num_classes', None) or model.decode_head.num_classes or 2)
    samples = []
    for _ in range(inputs.shape[0]):
        meta = {'ori_shape': size, 'img_shape': size, 'pad_shape': size, 'padding_size': [0, 0, 0, 0]}
        sample = SegDataSample(metainfo={**meta, 'flip': False, 'scale_factor': (1.0, 1.0), 'category_id': 0})
        labels = torch.randint(0, max(classes, 2), (1, *size), device=inputs.device)
        sample.gt_sem_seg = PixelData(data=labels)
        sample.gt_edge_map = PixelData(data=labels % 2)
        sample.gt_depth_map = PixelData(data=torch.rand(1, *size, device=inputs.device) + 0.5)
        samples.append(sample)
    return samples


def _inputs(module: Any, side: int) -> Any:
    """An image for a backbone, or the maps of a pyramid that a neck or head declares by ``in_channels``."""
    channels = getattr(module, 'in_channels', None)
    is_head = hasattr(module, 'conv_seg') or hasattr(module, 'input_transform')
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
