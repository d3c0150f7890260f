_base_ = ['mmpretrain::resnet/resnet18_8xb32_in1k.py', '../../_base_/protection/linear.py']
model = dict(type='keyseg_mm.Keyed', of='ImageClassifier', protection={{_base_.protection}})
