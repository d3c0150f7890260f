_base_ = ['mmseg::stdc/stdc2_in1k-pre_4xb12-80k_cityscapes-512x1024.py', '../_base_/protection/linear.py']
model = dict(type='keyseg_mm.Keyed', of='EncoderDecoder', protection={{_base_.protection}})
