# As patches_ade20k.py, for SETR's Cityscapes pipeline.
patches_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(2049, 1025), keep_ratio=True),
    dict(type='ResizeToMultiple', size_divisor=16),
    dict(type='keyseg_mm.EncryptImage', method='PATCH', key='env:KEYSEG_KEY'),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs')
]
custom_hooks = [dict(type='keyseg_mm.GuardHook')]
