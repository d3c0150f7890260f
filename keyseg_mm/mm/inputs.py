"""What modules of the host are given in a dry run: noise, data samples, the maps of a pyramid."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from torch import Tensor, nn

from keyseg_mm.mm.sizes import Size


def noise(module: nn.Module, batch: int, size: Size) -> Tensor:
    """Images of noise, with as many channels as the module's first convolution reads."""
    parameter = next(module.parameters(), torch.empty(0))
    channels = next((m.weight.shape[1] * m.groups for m in module.modules() if isinstance(m, nn.Conv2d)), 3)
    return torch.rand(batch, channels, *size, device=parameter.device)


def random_samples(model: Any, inputs: Tensor) -> list[SegDataSample]:
    """Data samples with random labels and depths."""
    classes, size = int(getattr(model, 'num_classes', None) or model.decode_head.num_classes or 2), inputs.shape[2:]
    samples = data_samples(torch.randint(0, classes, (len(inputs), *size), device=inputs.device))
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
    meta = dict.fromkeys(('ori_shape', 'img_shape', 'pad_shape', 'batch_input_shape'), size)
    return {**meta, 'padding_size': [0, 0, 0, 0], 'flip': False, 'scale_factor': (1.0, 1.0), 'category_id': 0}


def _edges(label: Tensor) -> Tensor:
    """Where a label map changes, as int64 0 and 1; what boundary-aware heads are trained with."""
    edge = torch.zeros_like(label)
    edge[:, 1:] |= (label[:, 1:] != label[:, :-1]).to(label.dtype)
    edge[1:] |= (label[1:] != label[:-1]).to(label.dtype)
    return edge


def is_head(module: nn.Module) -> bool:
    """Whether a module takes the maps of a backbone by their indices."""
    return hasattr(module, 'conv_seg') or hasattr(module, 'input_transform')


def inputs_of(module: Any, size: Size) -> tuple[Any, ...]:
    """What a part is called with: an image for a backbone, or the maps that a neck or head declares by ``in_channels``.

    Which form of maps it takes shows by calling it. Who takes data samples too gets some, as a whole detector does:
    whoever proposes boxes wants to know the size of the images.

    Raises:
        Exception: that of the host for the first form, where it takes none.
    """
    if list(inspect.signature(module.forward).parameters)[1:2] == ['data_samples']:
        images = noise(module, 2, size)
        return images, data_samples(images.new_zeros((len(images), *size), dtype=torch.int64))
    channels = getattr(module, 'in_channels', None)
    if isinstance(channels, int) and not is_head(module) or channels is None:
        return (noise(module, 2, size),)
    widths, problems = _widths(channels, _indices(module)), []
    for form in _FORMS:
        try:
            given = form(module, widths, size)
            module(*given)
        except Exception as error:  # whatever the host raises for what does not suit it
            problems.append(error)
        else:
            return given
    raise problems[0]


def _pyramid(module: Any, widths: list[int], size: Size) -> tuple[Any, ...]:
    return (_slots(module, [_map(c, size, i + 2) for i, c in enumerate(widths)]),)


def _of_one_size(module: Any, widths: list[int], size: Size) -> tuple[Any, ...]:
    return (_slots(module, [_map(c, size, 4) for c in widths]),)


def _with_class_tokens(module: Any, widths: list[int], size: Size) -> tuple[Any, ...]:
    return (_slots(module, [(_map(c, size, 4), torch.rand(2, c)) for c in widths]),)


def _after_another_head(module: Any, widths: list[int], size: Size) -> tuple[Any, ...]:
    return (*_of_one_size(module, widths, size), _map(module.num_classes, size, 4))


def _map_itself(module: Any, widths: list[int], size: Size) -> tuple[Any, ...]:
    return (_map(widths[0], size, 3),)


_FORMS = (_pyramid, _of_one_size, _with_class_tokens, _after_another_head, _map_itself)


def _map(channels: int, size: Size, halved: int) -> Tensor:
    return torch.rand(2, channels, *(max(side >> halved, 1) for side in size))


def _widths(channels: Any, indices: list[int]) -> list[int]:
    """Channels of each map; of maps that a head joins it tells the sum alone, and any that make it up will do."""
    if not isinstance(channels, int):
        return list(channels)
    others = [1] * (len(indices) - 1)
    return [*others, channels - sum(others)]


def _indices(module: Any) -> list[int]:
    index = getattr(module, 'in_index', -1)
    return [index] if isinstance(index, int) else list(index)


def _slots(module: Any, maps: list[Any]) -> list[Any]:
    """The maps of a backbone, out of which a head picks its own by ``in_index``."""
    if not is_head(module):
        return maps
    indices = _indices(module)
    slots = [maps[0]] * (max(*indices, len(maps) - 1) + 1)
    for i, m in zip(indices, maps):
        slots[i] = m
    return slots
