# The default, and of all that was audited what holds best (docs/results.md): the input of every convolution, linear layer
# and attention that the model calls is permuted, with signs, while the model trains and ever after. Pretrained weights keep
# what they know, for the maps are carried into them.
# Name your key with --cfg-options model.protection.key=file:PATH, or put it into the environment variable KEYSEG_KEY.
protection = dict(key='env:KEYSEG_KEY', points='linear', transform='SignedChannelPermutation')
custom_hooks = [dict(type='keyseg_mm.GuardHook')]
