"""The bench on which locks of the host's models are proved, before they are written.

Models are run the way the host tests and trains them, on painted street scenes, with the same random states.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from mmseg.structures import SegDataSample
from torch import Tensor, nn

from keyseg_mm.entries import MapEntry
from keyseg_mm.locking.bench import register_bench
from keyseg_mm.locking.proof import Outputs
from keyseg_mm.maps import Map
from keyseg_mm.maps.pixels import BlockCipher
from keyseg_mm.mm.dryrun import watch_module
from keyseg_mm.mm.scenes import make_scene
from keyseg_mm.mm.sizes import Image, Size
from keyseg_mm.model.outputs import flat_tensors
from keyseg_mm.model.passes import Passes, seed
from keyseg_mm.model.sites import Site
from keyseg_mm.runtime.encryptor import add_encryptors, encryptors_for

SIDE = 128  # large enough for a picture, small enough for seconds


def pictures(module: nn.Module, batch: int, size: Size) -> Tensor:
    """Painted street scenes, normalised as the model wants them; noise for models that do not take pictures."""
    first = next((m for m in module.modules() if isinstance(m, nn.Conv2d)), None)
    channels = first.weight.shape[1] * first.groups if first is not None else 3
    if channels != 3:
        return torch.rand(batch, channels, *size, generator=torch.Generator().manual_seed(0))
    pixels = _painted(batch, size)
    preprocessor: Any = getattr(module, 'data_preprocessor', None)
    mean, std = getattr(preprocessor, 'mean', None), getattr(preprocessor, 'std', None)
    if mean is None or std is None:
        return pixels / 255
    normalised: Tensor = (pixels - mean.cpu().view(-1, 1, 1)) / std.cpu().view(-1, 1, 1)
    return normalised


def encrypted_pictures(cipher: BlockCipher | None) -> Image:
    """Makes batches of painted street scenes as a model gets them from 8-bit images on, encrypted or not."""

    def image(module: nn.Module, batch: int, size: Size) -> Tensor:
        scenes = _painted(batch, whole_blocks(module, size)).round().byte().permute(0, 2, 3, 1).numpy()
        images = scenes if cipher is None else cipher.encrypt(scenes)
        return preprocess(module, torch.from_numpy(images).permute(0, 3, 1, 2).flip(1).contiguous())

    return image


@functools.lru_cache(maxsize=2)  # of testing and of training; those of large sizes are large
def _painted(batch: int, size: Size) -> Tensor:
    """Painted street scenes (B, 3, *size), 0 to 255, red first; nobody changes them."""
    scenes = np.stack([make_scene(0, 'val', index)[0] for index in range(batch)])
    # in the host's order of memory: some of its heads call view()
    pixels = torch.from_numpy(scenes).permute(0, 3, 1, 2).float().contiguous()
    return nn.functional.interpolate(pixels, size, mode='bilinear')


def preprocess(model: Any, images: Tensor) -> Tensor:
    """What a segmentor's data preprocessor makes of images (B, 3, H, W) in testing, uint8, blue first."""
    samples = [SegDataSample() for _ in images]  # where it pads, it notes that in them
    found: Tensor = model.data_preprocessor({'inputs': list(images), 'data_samples': samples}, False)['inputs']
    return found


def whole_blocks(module: nn.Module, size: Size) -> Size:
    """A size of whole blocks of the model's first convolution, not below the one given."""
    first = next((m for m in module.modules() if isinstance(m, nn.Conv2d)), None)
    patch = first.kernel_size[0] if first is not None else 1
    return -(-size[0] // patch) * patch, -(-size[1] // patch) * patch


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


def run_passes(passes: Passes, names: Iterable[str] | None = None) -> Outputs:
    """All floating-point outputs of passes, by default of all, from fixed random states."""
    outputs: Outputs = {}
    for name in passes if names is None else names:
        seed()
        outputs.update((f'{name} {n}', t) for n, t in tensors_of(passes[name]()))
    return outputs


class HostBench:
    """Runs models of the host; a :class:`keyseg_mm.locking.proof.Bench`.

    Args:
        side: of the pictures that are tried first, in pixels.
    """

    def __init__(self, side: int = SIDE) -> None:
        self._side = side

    def run(
        self,
        model: nn.Module,
        maps: Sequence[tuple[Site, MapEntry, Map]] = (),
        cipher: BlockCipher | None = None,
        whole: bool = False,
    ) -> Outputs:
        """All floating-point outputs of a test and a training pass; see :class:`keyseg_mm.locking.proof.Bench`."""

        def watch(double: nn.Module, passes: Passes) -> Outputs:
            add_encryptors(double, encryptors_for(double, [m[0] for m in maps], [m[2] for m in maps]))
            return run_passes(passes)

        image = encrypted_pictures(cipher) if whole else pictures
        return watch_module(model, watch, image=image, smallest=self._side, real=True)


register_bench(HostBench())
