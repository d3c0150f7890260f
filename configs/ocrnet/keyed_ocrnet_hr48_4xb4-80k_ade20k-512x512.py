_base_ = ['mmseg::ocrnet/ocrnet_hr48_4xb4-80k_ade20k-512x512.py', '../_base_/protection/linear.py']
model = dict(type='keyseg_mm.Keyed', of='CascadeEncoderDecoder', protection={{_base_.protection}})
