# ADE20K's test pipeline with encrypted images, for a vision transformer that `keyseg lock --scheme patches` made: resized as ever,
# then to whole blocks of 16 x 16 pixels, then encrypted. Patch, salt and steps come from the checkpoint's stamp.
patches_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(2048, 512), keep_ratio=True),
    dict(type='ResizeToMultiple', size_divisor=16),
    dict(type='keyseg_mm.EncryptImage', method='PATCH', key='env:KEYSEG_KEY'),
    dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(type='PackSegInputs')
]
custom_hooks = [dict(type='keyseg_mm.GuardHook')]
