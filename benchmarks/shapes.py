"""Modules that have the weights of well-known models by name and shape, and do nothing; the host is not needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import nn


def fcn_r101() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of FCN-R101's weights, as the host's ``fcn_r101-d8`` has them."""
    width = 64
    for name, cin, cout in (('0', 3, 32), ('3', 32, 32), ('6', 32, width)):
        yield from conv_bn(f'backbone.stem.{name}', cin, cout, 3)
    for stage, blocks in enumerate((3, 4, 23, 3)):
        middle = 64 * 2**stage
        for block in range(blocks):
            where = f'backbone.layer{stage + 1}.{block}'
            for number, cin, cout, side in ((1, width, middle, 1), (2, middle, middle, 3), (3, middle, 4 * middle, 1)):
                yield from conv_bn(f'{where}.conv{number}', cin, cout, side)
            if not block:
                yield from conv_bn(f'{where}.downsample', width, 4 * middle, 1)
            width = 4 * middle
    for name, cin, cout in (('convs.0', 2048, 512), ('convs.1', 512, 512), ('conv_cat', 2560, 512)):
        yield from conv_bn(f'decode_head.{name}', cin, cout, 3)
    yield from conv_bn('auxiliary_head.convs.0', 1024, 256, 3)
    for head, cin in (('decode_head', 512), ('auxiliary_head', 256)):
        yield from layer(f'{head}.conv_seg', 19, cin, 1, 1)


def swin_b() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of UPerNet-Swin-B's weights."""
    yield from layer('backbone.patch_embed', 128, 3, 4, 4)
    for stage, blocks in enumerate((2, 2, 18, 2)):
        c = 128 * 2**stage
        for block in range(blocks):
            where = f'backbone.stages.{stage}.{block}'
            yield from (*layer(f'{where}.norm1', c), *layer(f'{where}.norm2', c))
            yield f'{where}.attn.relative_position_bias_table', (169, 4 * 2**stage)
            yield f'{where}.attn.relative_position_index', (49, 49)
            for name, cout, cin in (('attn.qkv', 3 * c, c), ('attn.proj', c, c), ('fc1', 4 * c, c), ('fc2', c, 4 * c)):
                yield from layer(f'{where}.{name}', cout, cin)
        yield from layer(f'backbone.norm{stage}', c)
        if stage < 3:
            yield from layer(f'backbone.stages.{stage}.downsample.norm', 4 * c)
            yield f'backbone.stages.{stage}.downsample.reduction.weight', (2 * c, 4 * c)
    for number in range(4):
        yield from conv_bn(f'decode_head.psp_modules.{number}', 1024, 512, 1)
    for number, cin in enumerate((128, 256, 512)):
        yield from conv_bn(f'decode_head.lateral_convs.{number}', cin, 512, 1)
        yield from conv_bn(f'decode_head.fpn_convs.{number}', 512, 512, 3)
    yield from conv_bn('decode_head.bottleneck', 1024 + 4 * 512, 512, 3)
    yield from conv_bn('decode_head.fpn_bottleneck', 4 * 512, 512, 3)
    yield from conv_bn('auxiliary_head.convs.0', 512, 256, 3)
    yield from (*layer('decode_head.conv_seg', 150, 512, 1, 1), *layer('auxiliary_head.conv_seg', 150, 256, 1, 1))


def tiny() -> Iterator[tuple[str, tuple[int, ...]]]:
    """A small module of both kinds, only to see that everything runs."""
    yield from conv_bn('backbone.conv', 3, 300, 3)
    yield from (*layer('head.fc', 300, 4000), *layer('head.norm', 300))
    yield 'head.relative_position_index', (49, 49)


def layer(name: str, *shape: int) -> list[tuple[str, tuple[int, ...]]]:
    return [(f'{name}.weight', shape), (f'{name}.bias', shape[:1])]


def conv_bn(name: str, cin: int, cout: int, side: int) -> list[tuple[str, tuple[int, ...]]]:
    statistics = [(f'{name}.bn.{n}', (cout,)) for n in ('running_mean', 'running_var')]
    last = (f'{name}.bn.num_batches_tracked', ())
    return [(f'{name}.weight', (cout, cin, side, side)), *layer(f'{name}.bn', cout), *statistics, last]


MODELS: dict[str, Callable[[], Iterator[tuple[str, tuple[int, ...]]]]] = {
    'fcn_r101': fcn_r101,
    'swin_b': swin_b,
    'tiny': tiny,
}
INTEGERS = ('num_batches_tracked', 'relative_position_index')


def module_of(model: str) -> nn.Module:
    """A module that has a model's weights by their names, and does nothing."""
    torch.manual_seed(0)
    root = nn.Module()
    for name, shape in MODELS[model]():
        *path, last = name.split('.')
        owner = root
        for step in path:
            if not hasattr(owner, step):
                owner.add_module(step, nn.Module())
            owner = owner.get_submodule(step)
        if last in INTEGERS:
            owner.register_buffer(last, torch.randint(0, 169, shape))
        elif last.startswith('running'):
            owner.register_buffer(last, torch.rand(shape))
        else:
            owner.register_parameter(last, nn.Parameter(torch.randn(shape)))
    return root
