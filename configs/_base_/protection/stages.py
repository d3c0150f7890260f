# As linear.py, but the paper's way: every feature map that the backbone hands on is permuted. It costs next to no time, and
# keeps out whoever runs the file as it is; four labelled photos open it (docs/results.md).
_base_ = './linear.py'
protection = dict(points='stages', transform='ChannelPermutation')
