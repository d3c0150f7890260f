_base_ = ['mmseg::setr/setr_vit-l_pup_8xb1-80k_cityscapes-768x768.py', '../_base_/protection/linear.py']
model = dict(type='keyseg_mm.Keyed', of='EncoderDecoder', protection={{_base_.protection}})
