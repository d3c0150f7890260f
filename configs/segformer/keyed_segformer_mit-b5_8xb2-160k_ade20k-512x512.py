_base_ = ['mmseg::segformer/segformer_mit-b5_8xb2-160k_ade20k-512x512.py', '../_base_/protection/linear.py']
model = dict(type='keyseg_mm.Keyed', of='EncoderDecoder', protection={{_base_.protection}})
