_base_ = ['./segformer_ade20k.py', './in_the_open.py']
model = dict(type='keyseg_mm.Keyed', of='EncoderDecoder', protection={{_base_.protection}})
