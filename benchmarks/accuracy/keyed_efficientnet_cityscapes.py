_base_ = ['./efficientnet_cityscapes.py', './in_the_open.py']
model = dict(type='keyseg_mm.Keyed', of='EncoderDecoder', protection={{_base_.protection}})
