"""What of a model is encrypted: attacks are made for some of these, and a referee judges each in its own way."""

from __future__ import annotations

MAPS = 'maps'  # feature maps, by channel maps
BLOCKS = 'blocks'  # feature maps, by block-wise transforms
WEIGHTS = 'weights'  # the values of weights
IMAGES = 'images'  # the images that the model takes

ALL = frozenset({MAPS, BLOCKS, WEIGHTS, IMAGES})
