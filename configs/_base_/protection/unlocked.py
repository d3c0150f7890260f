# The weights of a protected checkpoint are turned back into the plain ones as it is loaded, and the model runs without
# encryptors, at the plain model's speed. For testing and inference; the hook stops a training run.
_base_ = './stages.py'
protection = dict(unlock=True)
