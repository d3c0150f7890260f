"""A small model on made pictures, locked, and a report as an audit makes it."""

from __future__ import annotations

import dataclasses
import logging

import numpy as np
import torch
from torch import nn

from keyseg_mm.audit.engine.attack import Budget
from keyseg_mm.audit.engine.runner import About, Check, Failure, Result
from keyseg_mm.audit.model.attack import LabelledPhotos, Target
from keyseg_mm.audit.model.referee import Score
from keyseg_mm.audit.model.report import ModelReport, Pictures, Place
from keyseg_mm.audit.report.page import colour_png, png
from keyseg_mm.bind import derive_map
from tests.support.configs import tiny_model_cfg

CLASSES, SALT = 5, bytes(range(16))

IN_POINTS = {'in:backbone.layer1.0.conv1': 8, 'in:decode_head.convs.0.conv': 8, 'in:decode_head.conv_seg': 16}


def small_model_cfg():
    """The tiny model with its head at the first, finest stage, so that it learns 16-pixel blocks."""
    cfg = tiny_model_cfg(CLASSES, aux=False)
    cfg.decode_head.update(in_channels=8, in_index=0)
    return cfg


def scenes(count: int, seed: int = 0) -> LabelledPhotos:
    """Blocks of five classes, each of its own colour: learnt in no time."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES, (count, 4, 4), generator=draw)
    labels = labels.repeat_interleave(16, 1).repeat_interleave(16, 2)
    colours = torch.tensor([[2.0, 0, 0], [0, 2, 0], [0, 0, 2], [-2, -2, 0], [0, -2, -2]])
    images = colours[labels].permute(0, 3, 1, 2) + 0.3 * torch.randn(count, 3, 64, 64, generator=draw)
    return LabelledPhotos(images.contiguous(), labels)


def build() -> nn.Module:
    from mmseg.registry import MODELS

    torch.manual_seed(7)
    level, logging.root.manager.disable = logging.root.manager.disable, logging.INFO
    model = MODELS.build(small_model_cfg())
    model.init_weights()
    logging.root.manager.disable = level
    return model.eval()


def lock(weights, key, plan):
    """What a lock does: W' = W T^-1 at the input of a layer."""
    locked = dict(weights)
    for entry in plan.entries:
        name = entry.point[len('in:') :] + '.weight'
        locked[name] = derive_map(key, plan.salt, entry)(weights[name], 1)
    return locked


def _labels(seed):
    blocks = torch.randint(0, 4, (4, 8), generator=torch.Generator().manual_seed(seed))
    return png(blocks.repeat_interleave(8, 0).repeat_interleave(8, 1))


def made_run(kind, name, value, scenario, share=None, error=None, recovery=0.25):
    """A run as a report has it."""
    about = About(
        kind=kind, name=name, title=f'{name} by a rather long-winded method', needs=('labelled',), cost='little',
        source='Somebody & Else <2024>, arXiv 2109.00224', family='recover', scenario=scenario, share=share, photos=7,
        scenario_title=f'the scenario {scenario}',
    )  # fmt: skip
    if error is not None:
        return Failure(about, '', 12.3, error)
    score = Score(value, 71.0, 0.51, recovery)
    return Result(about, score, '', 12.3, name == 'hill', 'a note', (_labels(2), _labels(3)))


def make_report(**changes):
    """A report as an audit makes it."""
    score = Score(58.8, 100.0, 1.0)
    photo = colour_png(np.random.default_rng(0).integers(0, 255, (32, 64, 3), dtype=np.uint8))
    place = Place('in:backbone.layer1.0.conv1', {'type': 'ChannelRotation', 'block': 8}, 64)
    palette = ((128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156))
    report = ModelReport(
        made_by='0.1.0', when='2026-01-01 12:00', suite='quick', seed=0,
        seconds=70.0, config='a_rather_long_config_name_8xb2-160k_ade20k-512x512.py', held_out=16,
        train_photos=160, photo_size=(32, 64), floor=2.2, checkpoint='<b>best</b>_mIoU_iter_500.pth',
        public='public.pth', second=None, key_id='ks1wxf3zvg5exqn3cuv', target=Target.MAPS, places=(place,),
        budget=Budget(60, 11.1), device='cpu', authorised=score,
        no_key=dataclasses.replace(score, miou=0.7),
        positive=Check(dataclasses.replace(score, recovery=1.0), True),
        negative=Check(dataclasses.replace(score, miou=0.9, recovery=0.02), True),
        pictures=Pictures(
            (photo, photo), (_labels(0),) * 2, (_labels(0),) * 2, (_labels(1),) * 2, palette
        ),
        outcomes=(
            made_run('control', 'scratch', 14.6, 'photos-0.1', 0.1),
            made_run('attack', 'hill', 54.4, 'photos-0.1', 0.1),
            made_run('attack', 'broken', 0.0, 'photos-0.1', 0.1, error='ValueError: <script>alert(1)</script>'),
            made_run('attack', 'random', 0.5, 'file'), made_run('control', 'scratch', 6.0, 'photos-0.01', 0.01),
            made_run('attack', 'hill', 20.0, 'photos-0.01', 0.01), made_run('attack', 'file', 1.0, 'file'),
        ),
    )  # fmt: skip
    return dataclasses.replace(report, **changes)


def errors_in(outcomes):
    """What ended runs, in a report's JSON."""
    return [one['error'] for one in outcomes if 'error' in one]


def names_in(outcomes, kind=None):
    """Names of the runs, in a report's JSON."""
    return {one['about']['name'] for one in outcomes if kind in (None, one['about']['kind'])}
