_base_ = ['mmseg::fastscnn/fast_scnn_8xb4-160k_cityscapes-512x1024.py', '../_base_/protection/linear.py']
model = dict(type='keyseg_mm.Keyed', of='EncoderDecoder', protection={{_base_.protection}})
