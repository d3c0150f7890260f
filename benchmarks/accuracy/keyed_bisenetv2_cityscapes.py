_base_ = ['./bisenetv2_cityscapes.py', '../../configs/_base_/protection/stages.py']
model = dict(type='keyseg_mm.Keyed', of='EncoderDecoder', protection={{_base_.protection}})
