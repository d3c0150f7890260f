# The paper's way: every feature map that the backbone hands on is permuted, while the model trains and ever after.
# Name your key with --cfg-options model.protection.key=file:PATH, or put it into the environment variable KEYSEG_KEY.
protection = dict(key='env:KEYSEG_KEY', points='stages', transform='ChannelPermutation')
custom_hooks = [dict(type='keyseg_mm.GuardHook')]
