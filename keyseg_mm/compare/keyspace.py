"""How many different keys a method has for a model: log2 of the number of its tables.

A key itself has 256 bits, and picks one of so many: what exceeds that is only reached by keys of another length. The
figure says when guessing is hopeless, and nothing of attacks that are no guessing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from keyseg_mm.audit.images.scheme import Scheme
from keyseg_mm.baselines.blockwise import DEFAULT_BLOCK
from keyseg_mm.images.plan import ImagePlan
from keyseg_mm.maps.keyspace import bits_of_half, bits_of_permutation
from keyseg_mm.stamp import Plan


def bits_of_images(plan: ImagePlan) -> float:
    """Of the tables of an image encryption; the same for every block."""
    return Scheme.of(plan).ciphers


def bits_of_map(transform: Mapping[str, Any], channels: int) -> float:
    """Of a feature transform of a map with so many channels; infinite for rotations, which cannot be counted."""
    values = channels * int(transform.get('block', DEFAULT_BLOCK)) ** 2
    return {
        'ChannelPermutation': lambda: bits_of_permutation(channels),
        'SignedChannelPermutation': lambda: bits_of_permutation(channels) + channels,
        'ChannelRotation': lambda: math.inf,
        'BlockShuffle': lambda: bits_of_permutation(values) + bits_of_permutation(channels),
        'NegativePositive': lambda: bits_of_half(values),
    }[transform['type']]()


def bits_of_plan(plan: Plan) -> float:
    """Of all points and tensors of a stamp."""
    maps = sum(bits_of_map(entry.transform, entry.channels) for entry in plan.entries)
    return maps + sum(bits_of_permutation(tensor.count) for tensor in plan.tensors)


def key_space(checkpoint: Path) -> float | None:
    """Of a protected checkpoint, as it tells by itself; None for a plain one.

    Raises:
        KeysegError: it cannot be read.
    """
    from keyseg_mm.checkpoint.files import read_checkpoint
    from keyseg_mm.images.plan import plans_in_meta
    from keyseg_mm.patchplan import patch_plan_of
    from keyseg_mm.stamp import stamps_of

    content = read_checkpoint(checkpoint)
    patches = patch_plan_of(content['state_dict'])
    if patches is not None:
        return patches.key_space
    found = [bits_of_plan(plan) for plan in stamps_of(content['state_dict']).values()]
    found += [bits_of_images(plan) for plan in plans_in_meta(content.get('meta'))]
    return sum(found) if found else None
