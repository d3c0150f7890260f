"""A small model that is exported, and the command that does it."""

from __future__ import annotations

import numpy as np
from mmengine.config import ConfigDict

from tests.support.cli import keyseg
from tests.support.configs import tiny_model_cfg

SIZE = (64, 96)


def model_cfg() -> ConfigDict:
    """One stage of the tiny model, wide enough for tables that are looked for."""
    cfg = tiny_model_cfg(num_classes=5, aux=False)
    cfg.backbone.update(base_channels=32, num_stages=1, strides=(1,), dilations=(1,), out_indices=(0,))
    cfg.decode_head.update(in_channels=32, in_index=0)
    return cfg


def export(shop, out, *options, checkpoint='locked.pth'):
    key = f'file:{shop.folder}/my.key'
    given = ('export', shop.folder / 'config.py', shop.folder / checkpoint, '--key', key, '--out', shop.folder / out)
    return keyseg(*given, *options)


def gap(got, want):
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))
