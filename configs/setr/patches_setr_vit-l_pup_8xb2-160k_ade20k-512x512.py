_base_ = ['mmseg::setr/setr_vit-l_pup_8xb2-160k_ade20k-512x512.py', '../_base_/protection/patches_ade20k.py']
val_dataloader = test_dataloader = dict(dataset=dict(pipeline={{_base_.patches_pipeline}}))
model = dict(test_cfg=dict(stride=(336, 336)))  # of whole blocks; the stock 341 would cut them
