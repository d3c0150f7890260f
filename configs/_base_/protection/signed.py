# As stages.py, and a secret half of the channels is negated too: a permutation leaves every value's sign as it was.
_base_ = './stages.py'
protection = dict(transform='SignedChannelPermutation')
