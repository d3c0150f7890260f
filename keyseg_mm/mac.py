"""Has a protected checkpoint been altered? A MAC over its weights that only a holder of the key can make or check.

HMAC-SHA256 (RFC 2104) over the stamp and the SHA-256 digests of all tensors. Digests of their own let several threads
share the work, which a single pass over hundreds of megabytes would not.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.hashes import SHA256, Hash
from cryptography.hazmat.primitives.hmac import HMAC
from torch import Tensor

_MOST_THREADS = 8
_T = TypeVar('_T')
_R = TypeVar('_R')


def weights_mac(mac_key: bytes, stamp: str, tensors: Mapping[str, Tensor]) -> bytes:
    """The MAC of a checkpoint.

    Args:
        mac_key: 32 secret bytes.
        stamp: the stamp's text, without its MAC.
        tensors: the state_dict, without its stamp. Names, dtypes, shapes and every bit count; the order does not.

    Returns:
        32 bytes.
    """
    return _hmac(mac_key, stamp, tensors).finalize()


def fits(mac_key: bytes, stamp: str, tensors: Mapping[str, Tensor], mac: bytes) -> bool:
    """Whether a MAC is that of these tensors and this stamp."""
    try:
        _hmac(mac_key, stamp, tensors).verify(mac)
    except InvalidSignature:
        return False
    return True


def _hmac(mac_key: bytes, stamp: str, tensors: Mapping[str, Tensor]) -> HMAC:
    names = sorted(tensors)
    digests = in_threads(digest, [tensors[name] for name in names])
    rows = [
        [name, str(tensors[name].dtype), list(tensors[name].shape), found.hex()] for name, found in zip(names, digests)
    ]
    mac = HMAC(mac_key, SHA256())
    mac.update(json.dumps([stamp, rows], separators=(',', ':')).encode('ascii'))
    return mac


def in_threads(work: Callable[[_T], _R], items: Iterable[_T]) -> list[_R]:
    """The results of work on large tensors, which leaves Python's lock to others most of the time, in order."""
    with ThreadPoolExecutor(min(os.cpu_count() or 1, _MOST_THREADS)) as pool:
        return list(pool.map(work, items))


def digest(tensor: Tensor) -> bytes:
    """SHA-256 of a tensor's values, in the order of its indices and in the machine's (little-endian) bytes."""
    hasher = Hash(SHA256())
    if tensor.numel():
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        hasher.update(flat.view(torch.uint8).numpy().data)
    return hasher.finalize()
