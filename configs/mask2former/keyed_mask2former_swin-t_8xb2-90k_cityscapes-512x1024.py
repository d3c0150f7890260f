_base_ = ['mmseg::mask2former/mask2former_swin-t_8xb2-90k_cityscapes-512x1024.py', '../_base_/protection/linear.py']
model = dict(type='keyseg_mm.Keyed', of='EncoderDecoder', protection={{_base_.protection}})
