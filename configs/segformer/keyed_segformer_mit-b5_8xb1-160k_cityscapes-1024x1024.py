_base_ = ['mmseg::segformer/segformer_mit-b5_8xb1-160k_cityscapes-1024x1024.py', '../_base_/protection/linear.py']
model = dict(type='keyseg_mm.Keyed', of='EncoderDecoder', protection={{_base_.protection}})
