# As stages.py, but values change places in blocks of 2 by 2 positions, across channels too (arXiv 2109.00224): what the
# paper compares channel permutations with. Such a model runs with its encryptors only: no lock, rekey or unlock.
_base_ = './stages.py'
protection = dict(transform=dict(_delete_=True, type='BlockShuffle', block=2))
