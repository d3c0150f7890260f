# Trained and tested on encrypted images (arXiv 2105.14756, 2107.09362); the model itself is the stock one.
_base_ = ['mmseg::fastscnn/fast_scnn_8xb4-160k_cityscapes-512x1024.py', '../_base_/images/shf.py']
train_pipeline = [*_base_.train_pipeline[:-1], _base_.image_encryption, _base_.train_pipeline[-1]]
test_pipeline = [*_base_.test_pipeline[:-1], _base_.image_encryption, _base_.test_pipeline[-1]]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
tta_pipeline = _base_.tta_pipeline
tta_pipeline[1]['transforms'].insert(-1, [_base_.image_encryption])
