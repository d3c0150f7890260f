# Encrypts images by block-wise pixel shuffling; method='NP' and 'FFX' are the others. The hook notes method, block, key id
# and salt in every checkpoint, and compares them when one is loaded.
image_encryption = dict(type='keyseg_mm.EncryptImage', method='SHF', block=8, key='env:KEYSEG_KEY')
custom_hooks = [dict(type='keyseg_mm.GuardHook')]
