# As stages.py, but each run of 8 channels is turned by a secret orthogonal matrix, which mixes them. It takes more time
# than a permutation and is exact only to rounding. For another size: model.protection.transform.block=16
_base_ = './stages.py'
protection = dict(transform=dict(_delete_=True, type='ChannelRotation', block=8))
