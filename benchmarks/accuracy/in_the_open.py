# Weights in the open, behind their maps: what these keep from whoever has them is measured here, and not a cipher.
_base_ = ['../../configs/_base_/protection/stages.py']
protection = dict(seal=False)
