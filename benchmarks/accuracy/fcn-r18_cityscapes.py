_base_ = './fast-scnn_cityscapes.py'

# An FCN on a ResNet-18 at half its width, from scratch.
norm_cfg = dict(type='BN', requires_grad=True, momentum=0.05)
loss = dict(type='CrossEntropyLoss', use_sigmoid=False, avg_non_ignore=True)
head = dict(
    type='FCNHead',
    in_channels=256,
    in_index=3,
    channels=64,
    num_convs=1,
    num_classes=19,
    norm_cfg=norm_cfg,
    concat_input=False,
    dropout_ratio=0.1,
    align_corners=False,
    loss_decode=dict(loss_weight=1.0, **loss))
model = dict(
    backbone=dict(
        _delete_=True,
        type='ResNetV1c',
        depth=18,
        base_channels=32,
        stem_channels=32,
        strides=(1, 2, 1, 1),
        dilations=(1, 1, 2, 4),
        norm_cfg=norm_cfg,
        norm_eval=False),
    decode_head=dict(_delete_=True, **head),
    auxiliary_head=[
        dict(head, in_channels=128, in_index=2, channels=32, loss_decode=dict(loss_weight=0.4, **loss)),
    ])
