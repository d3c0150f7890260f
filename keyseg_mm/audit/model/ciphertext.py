"""Who has the sealed file: is what is in it a ciphertext, and does it tell anything of the weights?

Each check is a figure that is standard normal, or zero, for random bytes; a test shows what it is for a file that is no
ciphertext. That AES-256-GCM is sound they cannot show; that it is at work, on all of the file, they do.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from keyseg_mm.keys.identity import Key
from keyseg_mm.seal.nested import tensors_of
from keyseg_mm.seal.sections import WEIGHTS, Sealing, seal_checkpoint, unseal_section
from keyseg_mm.stamp import is_stamp

_MOST = 64 * 2**20  # bytes looked at
_BLOCK = 16
_BYTES = 256
_FAR = 5.0  # standard deviations: chance goes so far once in 1.7 million times
_LARGE = 64  # values of a tensor that is compared
_SHRUNK = 0.999  # what a compressor leaves of random bytes is more than this


@dataclass(frozen=True)
class FileCheck:
    """One property of a ciphertext."""

    name: str  # what was looked at
    figure: float  # what was found
    bound: float  # what it may be at most in magnitude, or, of the compressor, at least
    passed: bool  # whether it is


def file_checks(
    sealed: Mapping[str, Any], key: Key, public: Mapping[str, Tensor] | None = None
) -> tuple[FileCheck, ...]:
    """Look at the sealed weights of a state_dict; what they are compared with is opened by the key."""
    plain = unseal_section(key, sealed)
    noise = weights_of(sealed)
    content = b''.join(map(_bytes, noise.values()))[:_MOST]
    again = weights_of(seal_checkpoint({WEIGHTS: plain}, Sealing(key))[WEIGHTS])
    values = np.frombuffer(content, dtype=np.uint8)
    common = _common(content, again)
    squeezed = len(zlib.compress(content)) / max(1, len(content))
    found = [
        _normal('bytes are equally frequent', _uniformity(values)),
        _normal('neighbouring bytes do not go together', _correlation(values[:-1], values[1:])),
        FileCheck('a compressor finds nothing', squeezed, _SHRUNK, squeezed > _SHRUNK),
        FileCheck('blocks of 16 bytes in common with a second file of the same weights', common, 0, common == 0),
        _normal('values do not go with the plain ones', _likeness(noise, weights_of(plain))),
    ]
    if public is not None:
        found.append(_normal('values do not go with the public ones', _likeness(noise, public)))
    return tuple(found)


def weights_of(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a state_dict without its stamps."""
    return {name: t for name, t in tensors_of(state).items() if not is_stamp(name)}


def _bytes(tensor: Tensor) -> bytes:
    return bytes(tensor.contiguous().view(-1).view(torch.uint8).numpy().data) if tensor.numel() else b''


def _normal(name: str, figure: float) -> FileCheck:
    return FileCheck(name, round(figure, 2), _FAR, abs(figure) <= _FAR)


def _uniformity(values: NDArray[np.uint8]) -> float:
    """Chi-squared of the byte counts, in standard deviations from what random bytes have."""
    expected = len(values) / _BYTES
    squares = ((np.bincount(values, minlength=_BYTES) - expected) ** 2 / expected).sum()
    free = _BYTES - 1
    return float((squares - free) / np.sqrt(2 * free))


def _correlation(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Correlation in standard deviations from that of unrelated values."""
    return float(np.corrcoef(a.astype(float), b.astype(float))[0, 1] * np.sqrt(len(a)))


def _common(content: bytes, again: Mapping[str, Tensor]) -> int:
    """How many aligned blocks two files share."""
    blocks = {content[i : i + _BLOCK] for i in range(0, len(content) - _BLOCK + 1, _BLOCK)}
    other = b''.join(map(_bytes, again.values()))[:_MOST]
    return sum(other[i : i + _BLOCK] in blocks for i in range(0, len(other) - _BLOCK + 1, _BLOCK))


def _likeness(noise: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> float:
    """Rank correlation of the values of all tensors together, in standard deviations from chance."""
    pairs = [
        (noise[name], other)
        for name, other in others.items()
        if name in noise and noise[name].shape == other.shape and other.is_floating_point() and other.numel() >= _LARGE
    ]
    sums = [_correlation(_ranks(a), _ranks(b)) * np.sqrt(a.numel()) for a, b in pairs]
    return float(sum(sums) / np.sqrt(sum(a.numel() for a, _ in pairs))) if pairs else 0.0


def _ranks(values: Tensor) -> NDArray[Any]:
    return values.flatten().double().nan_to_num().argsort().argsort().numpy()
