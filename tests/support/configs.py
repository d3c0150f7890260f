"""Small model configs, and whole configs of the host over small data."""

from __future__ import annotations

from pathlib import Path

import torch
from mmengine.config import Config, ConfigDict
from mmseg.registry import MODELS
from torch import nn

from tests.support.families import small_model


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


def normed_model() -> nn.Module:
    """The tiny model with norms that are no identity, ready for testing."""
    torch.manual_seed(0)
    model = MODELS.build(tiny_model_cfg())
    model.init_weights()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 2)
    return model.eval()


def keyed_cfg(model: dict, locator: str, **protection) -> ConfigDict:
    """The protected version of a model config; where nothing else is said at few points, which is quick."""
    protection = dict(dict(points='stages', transform='ChannelPermutation'), key=locator, **protection)
    return ConfigDict(model, type='keyseg_mm.Keyed', of=model['type'], protection=protection)


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
    cfg.custom_hooks = [dict(type='keyseg_mm.GuardHook')] if model['type'] == 'keyseg_mm.Keyed' else []
    cfg.merge_from_dict(changes)
    return cfg


def setr_cfg(**test_cfg):
    cfg = small_model('setr')
    for head in (cfg.decode_head, *cfg.auxiliary_head):
        head.num_classes = 5  # as many as the tiny data have: an untrained model hits some of them
    cfg.test_cfg = test_cfg or dict(mode='whole')
    return cfg
