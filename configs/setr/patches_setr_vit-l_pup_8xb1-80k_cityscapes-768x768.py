_base_ = ['mmseg::setr/setr_vit-l_pup_8xb1-80k_cityscapes-768x768.py', '../_base_/protection/patches_cityscapes.py']
val_dataloader = test_dataloader = dict(dataset=dict(pipeline={{_base_.patches_pipeline}}))
