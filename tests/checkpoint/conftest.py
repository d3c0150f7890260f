"""A small model, and its files."""

from __future__ import annotations

import pytest
import torch
from mmengine.config import Config
from mmengine.logging import HistoryBuffer
from mmseg.registry import MODELS

from keyseg_mm import lock_file, plan_lock, write_key_file
from keyseg_mm.checkpoint.files import write_checkpoint
from keyseg_mm.envelope import SEALED, SIGNED
from tests.support.configs import tiny_model_cfg
from tests.support.files import KEY, META, OTHER, SUFFIXES


@pytest.fixture(scope='module')
def model():
    torch.manual_seed(0)
    return MODELS.build(tiny_model_cfg())


@pytest.fixture(scope='module')
def plan(model):
    return plan_lock(model)


@pytest.fixture(scope='module')
def made(tmp_path_factory, model, plan):
    """A folder with a config, keys, and a checkpoint: plain, sealed, signed, in both formats; nobody changes it."""
    folder = tmp_path_factory.mktemp('made')
    Config(dict(model=tiny_model_cfg().to_dict())).dump(str(folder / 'config.py'))
    write_key_file(folder / 'right.key', KEY)
    write_key_file(folder / 'other.key', OTHER)
    torch.save(training_checkpoint(model.state_dict()), folder / 'training.pth')
    for suffix in SUFFIXES:
        write_checkpoint(folder / f'plain{suffix}', model.state_dict(), META)
        for name, mode in (('locked', SEALED), ('signed', SIGNED)):
            lock_file(folder / f'plain{suffix}', model, plan, KEY, folder / f'{name}{suffix}', mode=mode)
    return folder


def training_checkpoint(weights: dict) -> dict:
    """What a training leaves behind: plain copies of the weights in more places than one."""
    curve = HistoryBuffer()
    curve.update(1.5)
    return {
        'meta': {**META, 'time': object.__name__, 'odd': torch.ones(3)},
        'state_dict': dict(weights),
        'ema_state_dict': {f'module.{n}': t.clone() for n, t in weights.items()},
        'optimizer': {'state': {0: {'momentum_buffer': next(iter(weights.values())).clone()}}, 'param_groups': []},
        'message_hub': {'log_scalars': {'loss': curve}, 'runtime_info': {}, 'resumed_keys': {}},
        'param_schedulers': [],
    }
