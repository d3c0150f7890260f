_base_ = './fast-scnn_cityscapes.py'

# A BiSeNetV2 at half its width: a real-time model whose last map comes from a batch norm without a ReLU behind it.
norm_cfg = dict(type='BN', requires_grad=True, momentum=0.05)
loss = dict(type='CrossEntropyLoss', use_sigmoid=False, avg_non_ignore=True)
model = dict(
    backbone=dict(
        _delete_=True,
        type='BiSeNetV2',
        detail_channels=(32, 32, 128),
        semantic_channels=(16, 32, 64, 128),
        semantic_expansion_ratio=3,
        bga_channels=128,
        out_indices=(0, 3, 4),
        align_corners=False,
        norm_cfg=norm_cfg),
    decode_head=dict(
        _delete_=True,
        type='FCNHead',
        in_channels=128,
        in_index=0,
        channels=64,
        num_convs=1,
        num_classes=19,
        norm_cfg=norm_cfg,
        concat_input=False,
        align_corners=False,
        loss_decode=dict(loss_weight=1.0, **loss)),
    auxiliary_head=[
        dict(
            type='FCNHead',
            in_channels=channels,
            channels=32,
            num_convs=1,
            num_classes=19,
            in_index=index,
            norm_cfg=norm_cfg,
            concat_input=False,
            align_corners=False,
            loss_decode=dict(loss_weight=0.4, **loss)) for channels, index in ((64, 1), (128, 2))
    ])
