"""A backbone that is neither mmsegmentation's nor ours, with its public ImageNet weights, as a user would bring it."""

from __future__ import annotations

from typing import Any

from efficientnet_lite_pytorch import EfficientNet
from mmengine.model import BaseModule
from mmseg.registry import MODELS
from torch import Tensor

BLOCKS = (2, 4, 10, 15)  # the last ones at strides of 4, 8, 16 and 32: 24, 40, 112 and 320 channels


@MODELS.register_module()
class EfficientNetLite0(BaseModule):
    """EfficientNet-Lite0 of efficientnet-lite-pytorch, without its classifier; its weights keep their names.

    Shape:
        images (B, 3, H, W) in, maps (B, C, H / s, W / s) out, at the strides s of :data:`BLOCKS`.
    """

    def __init__(self, init_cfg: Any = None) -> None:
        super().__init__(init_cfg)
        net = EfficientNet.from_name('efficientnet-lite0')
        for name in ('_conv_stem', '_bn0', '_swish', '_blocks'):
            setattr(self, name, getattr(net, name))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """The maps of an image."""
        x, maps = self._swish(self._bn0(self._conv_stem(x))), []
        for index, block in enumerate(self._blocks):
            x = block(x)
            if index in BLOCKS:
                maps.append(x)
        return tuple(maps)
