# As shuffle.py, but a secret half of the values of each block of 2 by 2 positions is negated (negative/positive).
_base_ = './stages.py'
protection = dict(transform=dict(_delete_=True, type='NegativePositive', block=2))
