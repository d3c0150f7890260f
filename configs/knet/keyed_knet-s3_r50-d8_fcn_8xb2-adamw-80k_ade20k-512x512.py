_base_ = ['mmseg::knet/knet-s3_r50-d8_fcn_8xb2-adamw-80k_ade20k-512x512.py', '../_base_/protection/linear.py']
model = dict(type='keyseg_mm.Keyed', of='EncoderDecoder', protection={{_base_.protection}})
