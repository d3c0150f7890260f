"""The fingerprint: a secret pattern in the weights of a licensee's copy, that opening and fine-tuning leave there.

Each weight gets a value of the licensee's pattern, of a thousandth of what weights of its tensor are like: far below
what changes a prediction, and in millions of weights together far above what chance gives (spread spectrum, Cox et al.
1997; in weights, Uchida et al. 2017). Weights alone carry it: no bias, no norm, no buffer, no statistics of a norm.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from keyseg_mm.bind import digest
from keyseg_mm.checkpoint.marks import Add
from keyseg_mm.entries import SALT_BYTES
from keyseg_mm.errors import LockError
from keyseg_mm.keys.derive import sha256
from keyseg_mm.keys.fingerprint import MEAN, STD, Pattern
from keyseg_mm.keys.key import SecretKey
from keyseg_mm.keys.secret import unseen
from keyseg_mm.locking import unwrap
from keyseg_mm.maps.order import blocks
from keyseg_mm.stamp import is_stamp
from keyseg_mm.threads import in_threads

STRENGTH = 0.001
#: More than this a prediction would show.
MOST_STRENGTH = 0.1
_FEWEST = 64  # of a smaller tensor little would be found


@dataclass(frozen=True)
class Fingerprint:
    """Whose pattern, and how strong.

    Attributes:
        master: the master key.
        licensee: their name.
        strength: standard deviation of what is added, of the root mean square of a tensor's weights.

    Raises:
        LockError: the strength is out of its bounds.
    """

    master: SecretKey
    licensee: str
    strength: float = STRENGTH

    def __post_init__(self) -> None:
        if not 0 < self.strength <= MOST_STRENGTH:
            raise LockError(f'the strength of a fingerprint is more than 0, and at most {MOST_STRENGTH}')

    def put(self, tensors: Mapping[str, Any]) -> None:
        """Add the pattern to plain weights, whose memory is overwritten.

        Raises:
            LockError: nothing in there could carry it.
        """
        own = unwrap(tensors)
        found, adder = carriers(own), self.adder(own)

        def put_into(name: str) -> None:
            weight = found[name]
            values = weight.detach().contiguous()
            adder(name, values)(values)
            if values.data_ptr() != weight.data_ptr():
                weight.detach().copy_(values)

        in_threads(put_into, sorted(found, key=lambda name: -found[name].numel()))

    def adder(self, tensors: Mapping[str, Any]) -> Callable[[str, Tensor], Add]:
        """What makes, for each weight, what adds the pattern to it; it leaves alone what carries none.

        Args:
            tensors: a state_dict, without the prefix of data-parallel runs, of which those of less than two dimensions
                are plain.

        Returns:
            A function of a weight's name and the weight, plain or with maps in it, that returns a function to which the
            plain weight is given, contiguous: whole, or one after another of its :func:`keyseg_mm.maps.order.blocks`.

        Raises:
            LockError: nothing in there could carry it.
        """
        found, model = carriers(tensors), model_of(tensors)
        if not found:
            raise LockError('this checkpoint holds no weights that a fingerprint could be put into')

        def add_to(name: str, weight: Tensor) -> Add:
            size = self.strength * size_of(weight) / STD if name in found else 0.0
            if not 0 < size < math.inf:
                return lambda rows: None
            return partial(_add, Pattern(self.master, self.licensee, model, name), size)

        return add_to


@unseen
def _add(pattern: Pattern, size: float, rows: Tensor) -> None:
    """Add so much of a pattern's next values to as many of a weight's."""
    for part in blocks(rows):
        values = pattern.read(part.numel()).view(np.int8)
        values -= MEAN
        part.view(-1).add_(torch.from_numpy(values), alpha=size)


def carriers(tensors: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights that carry a fingerprint, by name, each once: layers' weights, so named, of two dimensions or more.

    Args:
        tensors: a state_dict, without the prefix of data-parallel runs.
    """
    found: dict[tuple[int, torch.Size], tuple[str, Tensor]] = {}
    for name in sorted(tensors):
        tensor = tensors[name]
        fits = isinstance(tensor, Tensor) and tensor.layout == torch.strided and tensor.is_floating_point()
        if fits and name.endswith('weight') and tensor.dim() > 1 and tensor.numel() >= _FEWEST:
            found.setdefault((tensor.data_ptr(), tensor.shape), (name, tensor))
    return dict(found.values())


def model_of(tensors: Mapping[str, Any]) -> bytes:
    """A public digest of a plain model, by what no fingerprint changes: biases, norms and their statistics.

    Args:
        tensors: its state_dict, without the prefix of data-parallel runs.
    """
    small = {n: t for n, t in tensors.items() if isinstance(t, Tensor) and t.dim() < 2 and not is_stamp(n)}
    digests = [[name, digest(small[name]).hex()] for name in sorted(small)]
    return sha256(json.dumps(digests, separators=(',', ':')).encode())[:SALT_BYTES]


def size_of(weight: Tensor) -> float:
    """Root mean square of a tensor's values: no order and no turn of its channels changes it."""
    return float(torch.linalg.vector_norm(weight.detach().flatten(), dtype=torch.float32)) / math.sqrt(weight.numel())
