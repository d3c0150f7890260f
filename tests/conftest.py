"""Shared fixtures: keys, tiny models and tiny Cityscapes-like data, all made on the spot."""

from __future__ import annotations

import ast
import os
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '2')
os.environ.setdefault('MPLBACKEND', 'Agg')

import numpy as np
import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import init_default_scope

import keyseg_mm.baselines  # noqa: F401 - its transforms
import keyseg_mm.mm  # noqa: F401 - the mends, before any config is read
from keyseg_mm import SecretKey, write_key_file


@pytest.fixture(autouse=True)
def _scope():
    """mmseg's scope, as the Runner sets it."""
    init_default_scope('mmseg')


@pytest.fixture(autouse=True, scope='session')
def _brisk_runner():
    """Leave out what takes a Runner seconds and says nothing here: the report on compilers, and layout of configs."""
    import mmengine.config.config as config
    import mmengine.runner.runner as runner
    from yapf.yapflib import yapf_api

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, 'collect_env', dict)
        for owner in (config, yapf_api):  # mmengine imports it at the top, onedl-mmengine at the call
            patch.setattr(owner, 'FormatCode', lambda text, **_: (text, True), raising=False)
        yield


@pytest.fixture
def key():
    return SecretKey(bytes(range(32)))


@pytest.fixture
def other_key():
    return SecretKey(bytes(range(1, 33)))


@pytest.fixture
def key_file(tmp_path, key):
    write_key_file(tmp_path / 'right.key', key)
    return tmp_path / 'right.key'


@pytest.fixture
def other_key_file(tmp_path, other_key):
    write_key_file(tmp_path / 'other.key', other_key)
    return tmp_path / 'other.key'


def tiny_model_cfg(num_classes: int = 19, aux: bool = True) -> ConfigDict:
    """A ResNet-18 with few channels, an FCN head and an auxiliary head, as a config: builds in no time."""
    norm_cfg = dict(type='BN', requires_grad=True)
    head = dict(
        type='FCNHead',
        in_channels=64,
        in_index=3,
        channels=16,
        num_convs=1,
        concat_input=False,
        dropout_ratio=0.0,
        num_classes=num_classes,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', avg_non_ignore=True),
    )
    model = dict(
        type='EncoderDecoder',
        data_preprocessor=dict(
            type='SegDataPreProcessor',
            mean=[123.675, 116.28, 103.53],
            std=[58.395, 57.12, 57.375],
            bgr_to_rgb=True,
            pad_val=0,
            seg_pad_val=255,
            size=(64, 64),
        ),
        backbone=dict(type='ResNet', depth=18, base_channels=8, stem_channels=8, norm_cfg=norm_cfg, norm_eval=False),
        decode_head=head,
        train_cfg=dict(),
        test_cfg=dict(mode='whole'),
    )
    if aux:
        model['auxiliary_head'] = dict(
            head, in_channels=32, in_index=2, loss_decode=dict(head['loss_decode'], loss_weight=0.4)
        )
    return ConfigDict(model)


def keyed_cfg(model: dict, locator: str, **protection) -> ConfigDict:
    """The protected version of a model config."""
    return ConfigDict(model, type='keyseg_mm.Keyed', of=model['type'], protection=dict(key=locator, **protection))


def write_tiny_cityscapes(root: Path, images: int = 4, size: tuple[int, int] = (64, 64)) -> Path:
    """A few pictures of coloured blocks with their labels, laid out as Cityscapes."""
    import cv2

    rng = np.random.default_rng(0)
    for split in ('train', 'val'):
        for index in range(images):
            label = np.kron(rng.integers(0, 5, (4, 4)), np.ones((size[0] // 4, size[1] // 4))).astype(np.uint8)
            image = (label[..., None] * np.array([50, 30, 10]) + rng.integers(0, 20, (*size, 3))).astype(np.uint8)
            for folder, suffix, what in (
                ('leftImg8bit', 'leftImg8bit', image),
                ('gtFine', 'gtFine_labelTrainIds', label),
            ):
                path = root / folder / split / 'town' / f'town_{index:06d}_000000_{suffix}.png'
                path.parent.mkdir(parents=True, exist_ok=True)
                assert cv2.imwrite(str(path), what)
    return root


@pytest.fixture(scope='session')
def tiny_cityscapes(tmp_path_factory):
    return write_tiny_cityscapes(tmp_path_factory.mktemp('data') / 'cityscapes')


def write_tiny_ade20k(root: Path, images: int = 4, size: tuple[int, int] = (61, 59)) -> Path:
    """The same laid out as ADE20K, of a size that no block divides; label 0 is what that data set leaves out."""
    import cv2

    rng = np.random.default_rng(1)
    for split in ('training', 'validation'):
        for index in range(images):
            label = np.kron(rng.integers(0, 6, (4, 4)), np.ones((16, 16)))[: size[0], : size[1]].astype(np.uint8)
            image = (label[..., None] * np.array([40, 20, 30]) + rng.integers(0, 20, (*size, 3))).astype(np.uint8)
            for folder, suffix, what in (('images', 'jpg', image), ('annotations', 'png', label)):
                path = root / folder / split / f'ADE_{index:08d}.{suffix}'
                path.parent.mkdir(parents=True, exist_ok=True)
                assert cv2.imwrite(str(path), what)
    return root


@pytest.fixture(scope='session')
def tiny_ade20k(tmp_path_factory):
    return write_tiny_ade20k(tmp_path_factory.mktemp('data') / 'ade20k')


def runner_cfg(
    data: Path, work_dir: Path, model: dict, iterations: int = 4, layout: str = 'cityscapes', **changes
) -> Config:
    """A whole config over mmseg's stock data set of that layout (cityscapes, ade20k), small enough for seconds."""
    import mmseg

    base = Path(mmseg.__file__).parent / '.mim' / 'configs' / '_base_'
    cfg = Config.fromfile(str(base / 'datasets' / f'{layout}.py'))
    cfg.merge_from_dict(Config.fromfile(str(base / 'default_runtime.py')).to_dict())
    annotations = dict(type='LoadAnnotations', reduce_zero_label=layout == 'ade20k')
    train = [
        dict(type='LoadImageFromFile'),
        annotations,
        dict(type='RandomFlip', prob=0.5),
        dict(type='PackSegInputs'),
    ]
    test = [dict(type='LoadImageFromFile'), annotations, dict(type='PackSegInputs')]
    for name, pipeline in (('train', train), ('val', test), ('test', test)):
        loader = cfg[f'{name}_dataloader']
        loader.update(num_workers=0, persistent_workers=False)
        loader.dataset.data_root = str(data)
        loader.dataset.pipeline = pipeline
    cfg.train_dataloader.batch_size = 2
    cfg.tta_pipeline[1].transforms[0] = [dict(type='Resize', scale_factor=r, keep_ratio=True) for r in (1.0, 1.5)]
    cfg.tta_model = dict(type='SegTTAModel')
    cfg.model = model
    cfg.work_dir = str(work_dir)
    cfg.optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.01, momentum=0.9))
    cfg.param_scheduler = [dict(type='PolyLR', eta_min=1e-4, power=0.9, begin=0, end=iterations, by_epoch=False)]
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=iterations, val_interval=iterations)
    cfg.val_cfg, cfg.test_cfg = dict(type='ValLoop'), dict(type='TestLoop')
    cfg.default_hooks = dict(
        timer=dict(type='IterTimerHook'),
        logger=dict(type='LoggerHook', interval=1, log_metric_by_epoch=False),
        param_scheduler=dict(type='ParamSchedulerHook'),
        checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=iterations // 2 or 1),
        sampler_seed=dict(type='DistSamplerSeedHook'),
        visualization=dict(type='SegVisualizationHook'),
    )
    cfg.randomness = dict(seed=0)
    cfg.env_cfg.dist_cfg = dict(backend='gloo')
    cfg.custom_hooks = [dict(type='keyseg_mm.KeyGuardHook')] if model['type'] == 'keyseg_mm.Keyed' else []
    cfg.merge_from_dict(changes)
    return cfg


@pytest.fixture
def image():
    torch.manual_seed(0)
    return torch.rand(2, 3, 64, 64)


def imports(path: Path) -> set[str]:
    """All modules that a file imports, at the top or inside functions; those under TYPE_CHECKING too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module or '', *(f'{node.module}.{alias.name}' for alias in node.names)}
    return found
