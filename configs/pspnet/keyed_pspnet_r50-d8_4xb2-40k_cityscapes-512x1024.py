_base_ = ['mmseg::pspnet/pspnet_r50-d8_4xb2-40k_cityscapes-512x1024.py', '../_base_/protection/linear.py']
model = dict(type='keyseg_mm.Keyed', of='EncoderDecoder', protection={{_base_.protection}})
