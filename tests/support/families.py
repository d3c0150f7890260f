"""One small model of every family that mmsegmentation ships."""

from __future__ import annotations

import copy
import importlib
from pathlib import Path

import mmseg
import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch import Tensor

STOCK = Path(mmseg.__file__).parent / '.mim' / 'configs'

ADE, CITY = '80k_ade20k-512x512', 'cityscapes-512x1024'

# what makes a model smaller: changes, and a number that all its widths are divided by
AS_IS = ({}, 1)

POOLED = (dict(data_preprocessor=dict(size=(400, 400))), 1)  # the least that its pooling takes

THIN = (dict(decode_head=dict(channels=64)), 1)

R18 = (dict(backbone=dict(depth=18, base_channels=16)), 16)  # a sixteenth of a ResNet-50's widths

OWN_R18 = (dict(backbone=dict(base_channels=16)), 4)  # of those that have one: a quarter

VIT = (dict(backbone=dict(img_size=(64, 64), num_layers=4, out_indices=(0, 1, 2, 3))), 4)

SLIM = (dict(backbone=dict(base_channels=16)), 4)

SWIN = (dict(backbone=dict(depths=(1, 1, 1, 1)), decode_head=dict(channels=64)), 1)

RESNEST = (dict(backbone=dict(depth=50, base_channels=16)), 4)

MASK2FORMER = (
    dict(
        backbone=dict(depth=18),
        decode_head=dict(
            pixel_decoder=dict(encoder=dict(num_layers=1)),
            transformer_decoder=dict(num_layers=3),
            train_cfg=dict(num_points=128),
        ),
    ),
    4,
)

SAN = (  # three classes: it embeds the names of all of them in each pass
    dict(
        text_encoder=dict(
            num_layers=1, templates=['a photo of a {}.'], dataset_name=None, vocabulary=['road', 'sky', 'car']
        ),
        image_encoder=dict(num_layers=3, out_indices=(0, 1, 2)),
        decode_head=dict(
            num_classes=3,
            train_cfg=dict(num_points=128),
            loss_decode=[
                dict(type='CrossEntropyLoss', loss_name='loss_cls_ce', class_weight=[1.0, 1.0, 1.0, 0.1]),
                dict(type='CrossEntropyLoss', loss_name='loss_mask_ce', use_sigmoid=True),
                dict(type='DiceLoss', loss_name='loss_mask_dice', ignore_index=None, naive_dice=True, eps=1),
            ],
        ),
    ),
    1,
)

WIDTHS = (
    *('in_channels', 'out_channels', 'c1_in_channels', 'c1_channels', 'channels', 'mid_channels', 'mla_channels'),
    *('feat_channels', 'feedforward_channels', 'post_process_channels', 'embed_dims', 'embed_dim', 'num_feats'),
)

# folder -> config, and what makes its model smaller
FAMILIES = {
    'ann': (f'ann_r50-d8_4xb4-{ADE}', *R18),
    'apcnet': (f'apcnet_r50-d8_4xb4-{ADE}', *R18),
    'beit': ('beit-base_upernet_8xb2-160k_ade20k-640x640', *VIT),
    'bisenetv1': ('bisenetv1_r18-d32_4xb4-160k_cityscapes-1024x1024', *AS_IS),
    'bisenetv2': ('bisenetv2_fcn_4xb4-160k_cityscapes-1024x1024', *AS_IS),
    'ccnet': (f'ccnet_r50-d8_4xb4-{ADE}', *R18),
    'cgnet': ('cgnet_fcn_4xb4-60k_cityscapes-680x680', *AS_IS),
    'convnext': ('convnext-tiny_upernet_8xb2-amp-160k_ade20k-512x512', *THIN),
    'danet': (f'danet_r50-d8_4xb4-{ADE}', *R18),
    'ddrnet': ('ddrnet_23-slim_in1k-pre_2xb6-120k_cityscapes-1024x1024', *AS_IS),
    'deeplabv3': (f'deeplabv3_r18-d8_4xb2-80k_{CITY}', *OWN_R18),
    'deeplabv3plus': (f'deeplabv3plus_r18-d8_4xb2-80k_{CITY}', *OWN_R18),
    'dmnet': (f'dmnet_r50-d8_4xb4-{ADE}', *R18),
    'dnlnet': (f'dnl_r50-d8_4xb4-{ADE}', *R18),
    'dpt': ('dpt_vit-b16_8xb2-160k_ade20k-512x512', *VIT),
    'dsdl': ('cityscapes', *R18),
    'emanet': ('emanet_r50-d8_4xb2-80k_cityscapes-512x1024', *R18),
    'encnet': (f'encnet_r50-d8_4xb4-{ADE}', *R18),
    'erfnet': (f'erfnet_fcn_4xb4-160k_{CITY}', *AS_IS),
    'fastfcn': (f'fastfcn_r50-d32_jpu_psp_4xb4-{ADE}', *R18),
    'fastscnn': (f'fast_scnn_8xb4-160k_{CITY}', *AS_IS),
    'fcn': (f'fcn_r18-d8_4xb2-80k_{CITY}', *OWN_R18),
    'gcnet': (f'gcnet_r50-d8_4xb4-{ADE}', *R18),
    'hrnet': (f'fcn_hr18s_4xb2-80k_{CITY}', *AS_IS),
    'icnet': ('icnet_r18-d8_4xb2-80k_cityscapes-832x832', *AS_IS),
    'isanet': (f'isanet_r50-d8_4xb4-{ADE}', *R18),
    'knet': ('knet-s3_r50-d8_fcn_8xb2-adamw-80k_ade20k-512x512', dict(backbone=dict(depth=18)), 4),
    'mae': ('mae-base_upernet_8xb2-amp-160k_ade20k-512x512', *VIT),
    'mask2former': ('mask2former_r50_8xb2-160k_ade20k-512x512', *MASK2FORMER),
    'maskformer': ('maskformer_r50-d32_8xb2-160k_ade20k-512x512', *R18),
    'mobilenet_v2': ('mobilenet-v2-d8_fcn_4xb4-160k_ade20k-512x512', *AS_IS),
    'mobilenet_v3': (
        'mobilenet-v3-d8-s_lraspp_4xb4-320k_cityscapes-512x1024',
        dict(data_preprocessor=dict(size=(400, 400))),
        1,
    ),
    'nonlocal_net': (f'nonlocal_r50-d8_4xb4-{ADE}', *R18),
    'ocrnet': (f'ocrnet_hr18s_4xb4-{ADE}', *AS_IS),
    'pidnet': ('pidnet-s_2xb6-120k_1024x1024-cityscapes', *AS_IS),
    'point_rend': ('pointrend_r50_4xb4-160k_ade20k-512x512', *R18),
    'poolformer': ('fpn_poolformer_s12_8xb4-40k_ade20k-512x512', *AS_IS),
    'psanet': (f'psanet_r50-d8_4xb4-{ADE}', *R18),
    'pspnet': (f'pspnet_r18-d8_4xb2-80k_{CITY}', *OWN_R18),
    'resnest': ('resnest_s101-d8_fcn_4xb4-160k_ade20k-512x512', *RESNEST),
    'san': ('san-vit-b16_coco-stuff164k-640x640', *SAN),
    'segformer': ('segformer_mit-b0_8xb2-160k_ade20k-512x512', *AS_IS),
    'segmenter': ('segmenter_vit-t_mask_8xb1-160k_ade20k-512x512', *AS_IS),
    'segnext': ('segnext_mscan-t_1xb16-adamw-160k_ade20k-512x512', *AS_IS),
    'sem_fpn': ('fpn_r50_4xb4-160k_ade20k-512x512', *R18),
    'setr': ('setr_vit-l_mla_8xb2-160k_ade20k-512x512', *VIT),
    'stdc': ('stdc1_4xb12-80k_cityscapes-512x1024', *AS_IS),
    'swin': ('swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512', *SWIN),
    'twins': ('twins_svt-s_uperhead_8xb2-160k_ade20k-512x512', *THIN),
    'unet': ('unet-s5-d16_fcn_4xb4-40k_drive-64x64', *SLIM),
    'upernet': (f'upernet_r18_4xb4-{ADE}', *THIN),
    'vit': ('vit_deit-s16_upernet_8xb2-80k_ade20k-512x512', *VIT),
    'vpd': ('vpd_sd_4xb8-25k_nyu-480x480', *AS_IS),
}

# what a family needs beyond mmsegmentation, mmcv without compiled ops, and mmengine
NEEDS = {
    'ccnet': ('mmcv._ext',),
    'convnext': ('mmpretrain.models',),
    'mask2former': ('mmdet.models',),
    'maskformer': ('mmdet.models',),
    'point_rend': ('mmcv._ext',),
    'poolformer': ('mmpretrain.models',),
    'psanet': ('mmcv._ext',),
    'san': ('mmcv._ext',),
    'vpd': ('ldm', 'omegaconf'),
}

CUSTOM_IMPORTS = dict.fromkeys(('convnext', 'poolformer'), 'mmpretrain.models')  # as their configs ask for

# smallest side of an image, where 64 is too small: this family's pooling is made for large ones
SIDES = {'mobilenet_v3': 400}

# the host's depth estimator, without the diffusion model that its only stock config takes for a backbone
DEPTH = ConfigDict(
    type='DepthEstimator',
    data_preprocessor=dict(type='SegDataPreProcessor'),
    backbone=dict(type='ResNet', depth=18, base_channels=16, norm_eval=False),
    decode_head=dict(
        type='VPDDepthHead',
        in_channels=[16, 32, 64, 128],
        embed_dim=16,
        feature_dim=128,
        num_deconv_filters=(16, 16, 16),
        fmap_border=(0, 0),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)


def plain_or_skip(family: str, cfg, side: int):
    """The plain model, initialised; skips where it does not run because something that the family needs is missing."""
    try:
        plain = build(cfg, CUSTOM_IMPORTS.get(family))
        loss(plain, side)  # norms have statistics then
    except Exception as error:  # the host raises whatever it likes
        missing = [name for name in NEEDS.get(family, ()) if not importable(name)]
        if not missing:
            raise
        pytest.skip(f'{family} needs {", ".join(missing)}; the plain model fails: {type(error).__name__}: {error}')
    return plain


def importable(name: str) -> bool:
    try:
        importlib.import_module(name)
    except Exception:  # not only ImportError: compiled parts of another release fail as they like
        return False
    return True


def build(cfg, imports: str | None = None):
    if imports is not None:
        importlib.import_module(imports)
    model = MODELS.build(copy.deepcopy(cfg))
    torch.manual_seed(0)
    for weight in model.parameters():  # the hosts' own init_weights leaves some as they were, and some next to nothing
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=(len(weight) / weight.numel()) ** 0.5)
    return model


def predict(model, side: int) -> Tensor:
    """The model's outputs for an image, before classes are picked."""
    torch.manual_seed(0)
    inputs = torch.rand(1, 3, side, side)
    with torch.no_grad():
        found = model.eval()(inputs, samples(model, inputs), mode='predict')[0]
    return (found.pred_depth_map if 'pred_depth_map' in found else found.seg_logits).data


def loss(model, side: int) -> Tensor:
    """The loss of a training step."""
    torch.manual_seed(0)
    inputs = torch.rand(2, 3, side, side)
    losses = model.train()(inputs, samples(model, inputs), mode='loss')
    return model.parse_losses(losses)[0]


def samples(model, inputs: Tensor) -> list[SegDataSample]:
    """Ground truth of all kinds for a batch of images."""
    size = tuple(inputs.shape[2:])
    found = []
    for index in range(len(inputs)):
        sample = SegDataSample(metainfo=dict(img_shape=size, ori_shape=size, pad_shape=size, flip=False, category_id=0))
        labels = torch.arange(size[0] * size[1]).reshape(1, *size) // 512 + index
        sample.gt_sem_seg = PixelData(data=labels % max(getattr(model, 'num_classes', 2), 2))
        sample.gt_edge_map = PixelData(data=labels % 2)
        sample.gt_depth_map = PixelData(data=labels / 8 + 1)
        found.append(sample)
    return found


def small_model(family: str) -> ConfigDict:
    """The family's model config, small, without downloads, and for one process."""
    name, changes, divisor = FAMILIES[family]
    cfg = Config.fromfile(str(STOCK / family / f'{name}.py'), import_custom_modules=False)
    cfg.merge_from_dict(dict(model=changes))
    adapt(cfg.model, divisor)
    return cfg.model


def adapt(value, divisor: int) -> None:
    """Divide widths, take out what would be downloaded, and put batch norms of one process for those of several."""
    if isinstance(value, dict):
        value.pop('pretrained', None)
        value.pop('init_cfg', None)
        if value.get('type') == 'SyncBN':
            value['type'] = 'BN'
        for name in set(value) & set(WIDTHS):
            value[name] = divided(value[name], divisor)
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ():
        adapt(item, divisor)


def divided(width, divisor: int):
    if isinstance(width, int):
        return width if width <= 3 else width // divisor  # 3 are an image's
    return type(width)(divided(w, divisor) for w in width)
