_base_ = './segformer_cityscapes.py'

# EfficientNet-Lite0 under SegFormer's head. Its public weights: backbone.init_cfg, see pretrained.py.
custom_imports = dict(imports=['efficientnet'])
model = dict(
    backbone=dict(_delete_=True, type='EfficientNetLite0'),
    decode_head=dict(in_channels=[24, 40, 112, 320]))
optim_wrapper = dict(optimizer=dict(lr=0.001))
