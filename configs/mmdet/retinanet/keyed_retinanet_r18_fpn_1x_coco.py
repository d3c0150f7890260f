_base_ = ['mmdet::retinanet/retinanet_r18_fpn_1x_coco.py', '../../_base_/protection/linear.py']
model = dict(type='keyseg_mm.Keyed', of='RetinaNet', protection={{_base_.protection}})
