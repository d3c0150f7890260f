"""A plain model, trained for a moment, and files of it."""

from __future__ import annotations

import dataclasses
import shutil

import pytest
import torch
from mmengine.config import Config

from keyseg_mm.audit.model.loading import PhotoSource
from keyseg_mm.audit.model.training import Recipe, train
from keyseg_mm.bind import stamp_tensor
from keyseg_mm.stamp import MapEntry, Stamp
from tests.support.audits import IN_POINTS, SALT, build, lock, scenes, small_model_cfg
from tests.support.configs import runner_cfg


@pytest.fixture(scope='module')
def plain():
    """A trained plain model's weights."""
    model = build()
    train(model, scenes(16), Recipe(60, 5e-3, crop=1.0))
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.fixture
def plan(key):
    spec = {'type': 'SignedChannelPermutation'}
    return Stamp(key.id, SALT, tuple(MapEntry(point, channels, spec) for point, channels in IN_POINTS.items()))


@pytest.fixture(scope='module')
def trained_on_files(tiny_cityscapes, tmp_path_factory):
    """A config over files, and the weights of a plain model trained on its photos."""
    folder = tmp_path_factory.mktemp('plain')
    runner_cfg(tiny_cityscapes, folder / 'work', small_model_cfg()).dump(str(folder / 'plain.py'))
    cfg, model = Config.fromfile(str(folder / 'plain.py')), build()
    source = PhotoSource(cfg, 'train', model)
    train(model, source.load(range(len(source)), torch.device('cpu')), Recipe(80, 5e-3, crop=1.0))
    return folder / 'plain.py', {name: value.clone() for name, value in model.state_dict().items()}


@pytest.fixture
def file_plan(plan):
    """Of two points, with the classifier left plain."""
    return dataclasses.replace(plan, entries=plan.entries[:2])


@pytest.fixture
def files(tmp_path, trained_on_files, key, other_key, file_plan):
    """The config, the model locked for two customers, plain, and a public one with another classifier."""
    config, weights = trained_on_files
    shutil.copy(config, tmp_path / 'plain.py')
    for name, owner in (('locked', key), ('second', other_key)):
        stamp = dataclasses.replace(file_plan, key_id=owner.id)
        state = {**lock(weights, owner, stamp), stamp.name: stamp_tensor(stamp)}
        torch.save({'state_dict': state}, tmp_path / f'{name}.pth')
    torch.save({'state_dict': weights}, tmp_path / 'plain.pth')
    public = {n: v for n, v in weights.items() if 'conv_seg' not in n}
    torch.save({'state_dict': public}, tmp_path / 'public.pth')
    return tmp_path
