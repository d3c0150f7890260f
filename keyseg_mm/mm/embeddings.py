"""Finding a model's patch embedding by running it, and what stands against images that are encrypted for it."""

from __future__ import annotations

from typing import Any

import torch
from mmseg.models.segmentors.base import BaseSegmentor
from torch import Tensor, nn

from keyseg_mm.errors import LockError
from keyseg_mm.maps.pixels import COLOURS
from keyseg_mm.mm.bench import preprocess, whole_blocks
from keyseg_mm.mm.dryrun import watch_module
from keyseg_mm.mm.sizes import Size
from keyseg_mm.model.consumers import find_image_readers
from keyseg_mm.model.layers import WeightIndex
from keyseg_mm.model.passes import Passes
from keyseg_mm.model.sites import module_of

_PROBE = 8  # side of the image that a data preprocessor is tried with: its values are all different, and fit 8 bits
# Backbones that add position embeddings (1, tokens, D) right behind a patch embedding without a bias: the parameter's
# name, and how many tokens in front are no patches. They may take the constant: resizing them keeps it.
POSITIONS: dict[str, tuple[str, int]] = {'VisionTransformer': ('pos_embed', 1)}


def find_embeddings(model: nn.Module) -> dict[str, nn.Conv2d]:
    """The layers that read a segmentor's images, if they are patch embeddings of one size.

    Raises:
        LockError: they are not, or something else reads the images too.
    """
    if not isinstance(model, BaseSegmentor):
        raise LockError(f'a {type(model).__name__} is no segmentor, which images are given to')

    images: list[Tensor] = []

    def image(module: nn.Module, batch: int, size: Size) -> Tensor:
        images.append(torch.rand(batch, COLOURS, *whole_blocks(module, size)))
        return images[-1]

    def watch(double: Any, passes: Passes) -> Any:
        if 'mode' in (getattr(double, 'test_cfg', None) or {}):
            double.test_cfg['mode'] = 'whole'  # sliding would read slices of the image first
        return find_image_readers(double, images, passes)

    found = watch_module(model, watch, image=image)
    if found.others:
        readers = ', '.join(sorted(found.others | found.layers))
        raise LockError(f'its images are read by {readers}: more than patch embeddings, and the rest would see rubbish')
    layers: dict[str, Any] = {name: module_of(model, name) for name in sorted(found.layers)}
    weights = WeightIndex(model)
    reasons = {name: _why_not(layer) or weights.why_not(layer, COLOURS, 'in') for name, layer in layers.items()}
    problems = [f'{name}: {why}' for name, why in reasons.items() if why]
    if not problems and len({layer.kernel_size for layer in layers.values()}) != 1:
        problems = [f'{len(layers)} layers read its images, with patches of several sizes']
    if problems:
        raise LockError('this model has no patch embedding that can be encrypted: ' + '; '.join(problems))
    return layers


def _why_not(layer: Any) -> str:
    """Why a map within blocks cannot be undone in a layer's weights; empty where it can."""
    if not isinstance(layer, nn.Conv2d) or layer.in_channels != COLOURS or layer.groups != 1:
        return f'a {type(layer).__name__} that is no convolution of {COLOURS} channels'
    size, padded = layer.kernel_size, layer.padding not in ((0, 0), 'valid')
    if size != layer.stride or size[0] != size[1] or size[0] == 1 or padded or layer.dilation != (1, 1):
        return (
            f'kernel {size}, stride {layer.stride}, padding {layer.padding}, dilation {layer.dilation}: only where '
            'square patches do not overlap, and leave no gaps, a map within blocks can be undone'
        )
    return ''


def normalisation(model: Any) -> tuple[str, tuple[float, ...], tuple[float, ...]]:
    """Order of the channels in the model, and mean and std by which it normalises them, in that order.

    Read from its data preprocessor, and checked by giving that an image. The host's loaders give blue first.

    Raises:
        LockError: it does something else with pixels than to reorder channels and to normalise them.
    """
    preprocessor = model.data_preprocessor
    mean, std = (
        values.detach().cpu().double().flatten() if isinstance(values, Tensor) else torch.full((COLOURS,), default)
        for values, default in ((getattr(preprocessor, 'mean', None), 0.0), (getattr(preprocessor, 'std', None), 1.0))
    )
    image = torch.arange(COLOURS * _PROBE**2, dtype=torch.uint8).reshape(COLOURS, _PROBE, _PROBE)
    given = preprocess(model, image[None]).double().cpu()
    for order, channels in (('bgr', image), ('rgb', image.flip(0))):
        expected = (channels.double() - mean.double().view(-1, 1, 1)) / std.double().view(-1, 1, 1)
        same = given[0, :, :_PROBE, :_PROBE]  # padding is :func:`misaligned`'s to judge
        if same.shape == expected.shape and torch.allclose(same, expected, rtol=1e-5, atol=1e-4):
            return order, tuple(mean.tolist()), tuple(std.tolist())
    raise LockError(
        f'the {type(preprocessor).__name__} of this model does more to an image than to reorder its channels and to '
        'normalise them, and what it does to an encrypted one cannot be undone'
    )


def offset_of(model: nn.Module, name: str, layer: nn.Conv2d) -> tuple[str, int]:
    """The tensor that takes the constant of an encrypted patch embedding, and how many of its rows do not.

    That is its bias, or the position embeddings right behind it; an empty name where there is neither.
    """
    if layer.bias is not None:
        return f'{name}.bias', 0
    parent, owner = (name.rsplit('.', n)[0] for n in (1, 2))
    backbone = module_of(model, owner)
    rule = next((POSITIONS[cls.__name__] for cls in type(backbone).__mro__ if cls.__name__ in POSITIONS), None)
    if rule is None or getattr(module_of(model, parent), 'norm', None) is not None:
        return '', 0
    return f'{owner}.{rule[0]}', rule[1]


def misaligned(model: Any, patch: int) -> list[str]:
    """What in a segmentor's testing would cut or pad an encrypted image inside its blocks, in words; empty if nothing.

    Sliding windows start at multiples of the stride, or end at the image's border. With crop, stride and image all
    multiples of the patch they hold whole blocks.
    """
    found, test = [], getattr(model, 'test_cfg', None) or {}
    if test.get('mode') == 'slide':
        for name in ('crop_size', 'stride'):
            sides = test[name]
            if any(side % patch for side in sides):
                aligned = tuple(max(side // patch, 1) * patch for side in sides)
                found.append(
                    f'sliding windows of {name} {tuple(sides)} cut blocks of {patch} pixels: set '
                    f'model.test_cfg.{name}={aligned}, for the plain model too if you compare them'
                )
    pads = getattr(getattr(model, 'data_preprocessor', None), 'test_cfg', None) or {}
    if pads.get('size') or patch % (pads.get('size_divisor') or 1):
        found.append(
            'data_preprocessor.test_cfg pads images after they were encrypted, with pixels that are not: take it out, '
            f"and resize before encrypting, by dict(type='ResizeToMultiple', size_divisor={patch}) or larger"
        )
    return found
