_base_ = ['mmseg::ocrnet/ocrnet_hr18_4xb2-40k_cityscapes-512x1024.py', '../_base_/protection/linear.py']
model = dict(type='keyseg_mm.Keyed', of='CascadeEncoderDecoder', protection={{_base_.protection}})
