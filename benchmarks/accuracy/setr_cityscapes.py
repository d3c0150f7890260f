_base_ = './fast-scnn_cityscapes.py'

# A small vision transformer with SETR's naive head, from scratch: its patches do not overlap, so that its patch embedding
# can be locked for encrypted images. Test images are resized to whole patches, for the plain model too.
patch = 16
norm_cfg = dict(type='BN', requires_grad=True, momentum=0.05)
model = dict(
    backbone=dict(
        _delete_=True,
        type='VisionTransformer',
        img_size=(192, 256),
        patch_size=patch,
        embed_dims=96,
        num_layers=4,
        num_heads=4,
        out_indices=[3],
        final_norm=True,
        interpolate_mode='bilinear'),
    decode_head=dict(
        _delete_=True,
        type='SETRUPHead',
        in_channels=96,
        channels=64,
        in_index=0,
        num_classes=19,
        num_convs=2,
        up_scale=2,
        kernel_size=3,
        align_corners=False,
        dropout_ratio=0.0,
        norm_cfg=norm_cfg,
        loss_decode=dict(type='CrossEntropyLoss', avg_non_ignore=True)),
    auxiliary_head=None)
optim_wrapper = dict(optimizer=dict(lr=0.001))

test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='ResizeToMultiple', size_divisor=patch),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs')
]
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
