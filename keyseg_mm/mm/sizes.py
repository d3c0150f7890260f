"""At which sizes a module of the host is tried: those that it was made for, as far as it can be seen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

Size = tuple[int, int]
#: Makes a batch of images (B, C, *size) for a module.
Image = Callable[[nn.Module, int, Size], Tensor]

SMALL = 64  # where most models run, in no time
ROOMY = 256  # a loss that does not run there runs nowhere
# Side lengths tried in turn where that is too small, for pooling, windows or crops, and no other is known.
SIDES = (128, 224, 256, 384, 512, 640)
_STRIDE = 32  # of most backbones' last map


def sizes_for(module: nn.Module, smallest: int = SMALL) -> tuple[list[Size], list[Size]]:
    """Sizes (height, width) to try, in order: a small one and those that the module was made for; and others.

    The small one comes first since it costs a hundredth of the others, and models of a fixed size, whose position
    tables fit no other, refuse it at once.
    """
    own = list(dict.fromkeys([(smallest, smallest), *_made_for(module)]))
    return own, [(side, side) for side in (*SIDES, SMALL) if (side, side) not in own]


def another(size: Size) -> Size:
    """A size that shares no side with this one, nor do its maps."""
    if max(size) < 2 * SMALL:
        return size[0] + _STRIDE, size[1] + 2 * _STRIDE
    return tuple(max(side // 2 // _STRIDE * _STRIDE, _STRIDE) for side in size)  # type: ignore[return-value]


def _made_for(module: Any) -> Iterator[Size]:
    """What says which size a model is for: its data preprocessor, its sliding windows, its parts, its config."""
    test_cfg, config = getattr(module, 'test_cfg', None) or {}, getattr(module, 'cfg', None) or {}
    found = [getattr(getattr(module, 'data_preprocessor', None), 'size', None)]
    found += [test_cfg.get('crop_size') if hasattr(test_cfg, 'get') else None]
    for part in module.modules():
        found += [getattr(part, name, None) for name in ('img_size', 'init_input_size')]
    found += [config.get('crop_size'), *_scales(config.get('test_pipeline'))]
    for size in found:
        sides = (size, size) if isinstance(size, int) else size
        if isinstance(sides, (tuple, list)) and len(sides) == 2 and all(isinstance(s, int) and s > 0 for s in sides):
            yield sides[0], sides[1]


def _scales(pipeline: Any) -> Iterator[Any]:
    """The sizes that a config's pipeline resizes to, which mmcv gives by width and height."""
    for step in pipeline or ():
        scale = step.get('scale') if isinstance(step, dict) and step.get('type') == 'Resize' else None
        if isinstance(scale, (tuple, list)):
            yield tuple(reversed(scale))
