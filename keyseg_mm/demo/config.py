"""The config that the demo writes and trains: an ordinary mmsegmentation config with a protection."""

from __future__ import annotations

_CONFIG = """\
# What `keyseg demo` trains: a small SegFormer for small street scenes laid out as Cityscapes.
_base_ = ['mmseg::_base_/datasets/cityscapes.py', 'mmseg::_base_/default_runtime.py']

model = dict(
    # These three lines protect the model. In a config with a _base_ of its own they are all that it takes.
    type='keyseg_mm.Keyed',
    of='EncoderDecoder',
    protection=dict(key='file:{{ fileDirname }}/%(key)s', points='stages', transform='ChannelPermutation'),
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size=(%(height)d, %(width)d)),
    backbone=dict(
        type='MixVisionTransformer',
        embed_dims=32,
        num_heads=[1, 2, 4, 8],
        num_layers=[1, 1, 1, 1],
        patch_sizes=[7, 3, 3, 3],
        sr_ratios=[8, 4, 2, 1],
        out_indices=(0, 1, 2, 3),
        mlp_ratio=4,
        qkv_bias=True),
    decode_head=dict(
        type='SegformerHead',
        in_channels=[32, 64, 128, 256],
        in_index=[0, 1, 2, 3],
        channels=64,
        dropout_ratio=0.0,
        num_classes=19,
        norm_cfg=dict(type='BN', requires_grad=True, momentum=0.05),
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', avg_non_ignore=True)),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'))
# Watches the run: every encryptor fires, nothing secret is written.
custom_hooks = [dict(type='keyseg_mm.GuardHook')]

data_root = '{{ fileDirname }}/%(scenes)s'
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs')
]
test_pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='PackSegInputs')]
workers = dict(num_workers=0, persistent_workers=False)
train_dataloader = dict(batch_size=%(batch)d, dataset=dict(data_root=data_root, pipeline=train_pipeline), **workers)
test_dataloader = dict(dataset=dict(data_root=data_root, pipeline=test_pipeline), **workers)
val_dataloader = val_evaluator = val_cfg = None

optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=0.003, weight_decay=0.01))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=%(linear_end)d),
    dict(type='PolyLR', eta_min=1e-5, power=0.9, by_epoch=False, begin=%(poly_begin)d, end=%(iterations)d)
]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=%(iterations)d)
test_cfg = dict(type='TestLoop')
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=20, log_metric_by_epoch=False),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=%(iterations)d, save_optimizer=False),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='SegVisualizationHook'))
randomness = dict(seed=%(seed)d)
work_dir = '{{ fileDirname }}/%(work_dir)s'
"""


def config_text(names: dict[str, str], size: tuple[int, int], iterations: int, seed: int, batch: int) -> str:
    """The config as a file's text.

    Args:
        names: of ``key``, ``scenes`` and ``work_dir`` in the config's own folder.
        size: height and width of the scenes.
        iterations: length of the training.
        seed: of the run; the key does not depend on it.
        batch: scenes in each iteration.
    """
    numbers = {'iterations': iterations, 'seed': seed, 'batch': batch, 'height': size[0], 'width': size[1]}
    # A schedule must not be empty, and a twentieth of a very short training is.
    schedule = {'linear_end': max(1, iterations // 20), 'poly_begin': iterations // 20}
    return _CONFIG % {**names, **numbers, **schedule}
