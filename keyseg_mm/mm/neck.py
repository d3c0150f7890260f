"""``KeyedNeck``: a neck that only encrypts, for configs that have none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmengine.model import BaseModule
from torch import Tensor

from keyseg_mm.errors import KeysegError
from keyseg_mm.keys.locator import locate
from keyseg_mm.mm.keyed import check_options, protect
from keyseg_mm.mm.registry import MODELS


@MODELS.register_module()
class KeyedNeck(BaseModule):
    """Hands on the backbone's feature maps, encrypted.

    It has no weights and no state_dict keys but the stamp. In a config:
    ``neck=dict(type='keyseg_mm.KeyedNeck', in_channels=[256, 512, 1024, 2048], protection=dict(key='file:...'))``.

    Args:
        in_channels: channels of the backbone's maps, in order.
        protection: as of :func:`keyseg_mm.mm.keyed.Keyed`, without ``points``: all maps are encrypted.

    Shape:
        maps (B, in_channels[i], H_i, W_i) in, the same out.
    """

    def __init__(self, in_channels: Sequence[int], protection: dict[str, Any], init_cfg: Any = None) -> None:
        super().__init__(init_cfg)
        self.in_channels = list(in_channels)
        options = check_options(protection)
        if 'points' in options:
            raise KeysegError('KeyedNeck encrypts all of its maps; leave points out, or use Keyed around the model')
        protect(self, locate(options.get('key')), {**options, 'points': 'stages'})

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Hand on; the encryptors work on the result."""
        return tuple(inputs)
