"""What models of the host are tried with, and what they hand out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from mmseg.structures import SegDataSample
from torch import Tensor, nn

from keyseg_mm.maps.pixels import BlockCipher
from keyseg_mm.mm.dryrun import Image
from keyseg_mm.mm.scenes import make_scene
from keyseg_mm.model.sites import flat_tensors

SIDE = 128  # large enough for a picture, small enough for seconds


def pictures(module: nn.Module, batch: int, side: int) -> Tensor:
    """Painted street scenes, normalised as the model wants them; noise for models that do not take pictures."""
    first = next((m for m in module.modules() if isinstance(m, nn.Conv2d)), None)
    channels = first.weight.shape[1] * first.groups if first is not None else 3
    if channels != 3:
        return torch.rand(batch, channels, side, side, generator=torch.Generator().manual_seed(0))
    scenes = [make_scene(0, 'val', index)[0] for index in range(batch)]
    # in the host's order of memory: some of its heads call view()
    pixels = torch.from_numpy(np.stack(scenes)).permute(0, 3, 1, 2).float().contiguous()
    pixels = nn.functional.interpolate(pixels, (side, side), mode='bilinear')
    preprocessor: Any = getattr(module, 'data_preprocessor', None)
    mean, std = getattr(preprocessor, 'mean', None), getattr(preprocessor, 'std', None)
    if mean is None or std is None:
        return pixels / 255
    normalised: Tensor = (pixels - mean.cpu().view(-1, 1, 1)) / std.cpu().view(-1, 1, 1)
    return normalised


def encrypted_pictures(cipher: BlockCipher | None) -> Image:
    """Makes batches of painted street scenes as a model gets them from 8-bit images on, encrypted or not."""

    def image(module: nn.Module, batch: int, side: int) -> Tensor:
        side = whole_side(module, side)
        scenes = [make_scene(0, 'val', index)[0] for index in range(batch)]  # red first
        pixels = torch.from_numpy(np.stack(scenes)).permute(0, 3, 1, 2).float()
        small = nn.functional.interpolate(pixels, (side, side), mode='bilinear').round().byte().permute(0, 2, 3, 1)
        images = small.numpy() if cipher is None else cipher.encrypt(small.numpy())
        return preprocess(module, torch.from_numpy(images).permute(0, 3, 1, 2).flip(1).contiguous())

    return image


def preprocess(model: Any, images: Tensor) -> Tensor:
    """What the host's data preprocessor makes of images in testing.

    Args:
        model: a segmentor.
        images: (B, 3, H, W), uint8, blue first.
    """
    samples = [SegDataSample() for _ in images]  # where it pads, it notes that in them
    found: Tensor = model.data_preprocessor({'inputs': list(images), 'data_samples': samples}, False)['inputs']
    return found


def whole_side(module: nn.Module, side: int) -> int:
    """A side length of whole blocks of the model's first convolution, not below the one given."""
    first = next((m for m in module.modules() if isinstance(m, nn.Conv2d)), None)
    patch = first.kernel_size[0] if first is not None else 1
    return -(-side // patch) * patch


def tensors_of(result: Any, name: str = '') -> list[tuple[str, Tensor]]:
    """Floating-point tensors of what the host returns: losses, data samples, feature maps."""
    if isinstance(result, Mapping):
        found = [tensors_of(value, f'{name}.{key}') for key, value in result.items() if not str(key).startswith('gt_')]
    elif hasattr(result, 'all_items'):  # the host's data elements: samples, and the maps in them
        found = [tensors_of(dict(result.all_items()), name)]
    else:
        found = [[(f'{name}[{i}]', t)] for i, t in enumerate(flat_tensors(result)) if t.is_floating_point()]
        if isinstance(result, (list, tuple)) and not found:
            found = [tensors_of(value, f'{name}[{index}]') for index, value in enumerate(result)]
    return [(n, t.float()) for part in found for n, t in part]
