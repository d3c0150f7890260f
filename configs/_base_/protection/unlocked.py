# The weights of a protected checkpoint are turned back into the plain ones as it is loaded, and the model runs without
# encryptors, at the plain model's speed. What it writes, in training too, is sealed.
_base_ = './linear.py'
protection = dict(runtime='plain')
