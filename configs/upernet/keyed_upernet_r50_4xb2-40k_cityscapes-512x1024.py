_base_ = ['mmseg::upernet/upernet_r50_4xb2-40k_cityscapes-512x1024.py', '../_base_/protection/linear.py']
model = dict(type='keyseg_mm.Keyed', of='EncoderDecoder', protection={{_base_.protection}})
