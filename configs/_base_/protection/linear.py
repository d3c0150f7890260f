# As stages.py, but at many more places and with signs: the input of every ungrouped convolution and linear layer that the
# model calls. Of all that was audited this holds best (docs/results.md). It is for training from scratch: a backbone's
# pretrained weights do not fit behind permutations, and what they have learnt is lost. (To keep it, lock the pretrained
# model with keyseg lock, and train that on by load_from and points='checkpoint'.)
_base_ = './stages.py'
protection = dict(points='linear', transform='SignedChannelPermutation')
