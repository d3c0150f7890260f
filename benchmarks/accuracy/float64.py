"""Imported by a config of law.py: the whole training is in float64, so that rounding tells no two of them apart."""

import torch

torch.set_default_dtype(torch.float64)
