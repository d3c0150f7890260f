# For a checkpoint that was locked after training (keyseg lock): points and transforms are those of its stamp.
_base_ = './linear.py'
protection = dict(points='checkpoint')
