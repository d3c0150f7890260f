"""Files for ``load_from`` from wherever mmengine's file backends fetch them, and from memory: ``keyseg://...``.

The host's loader knows the disk, http, s3 and a few more. ``keyseg://PLACE`` takes what ``mmengine.fileio.get`` does as
a place, ``keyseg://petrel://bucket/locked.pth`` say, or that of a backend of one's own; and :func:`from_bytes` gives a
name to a file that is in memory. Files are read by the strict list that all are read by, and opened as those are.
"""

from __future__ import annotations

import io
from itertools import count
from typing import Any

from mmengine import fileio
from mmengine.runner import CheckpointLoader

from keyseg_mm.errors import KeysegError
from keyseg_mm.mm.doors import read_for_host

PREFIX, _MEMORY = 'keyseg://', 'memory/'
_held: dict[str, bytes] = {}
_numbers = count(1)


def from_bytes(content: bytes) -> str:
    """What ``load_from``, ``init_model`` and the like take for a checkpoint that is in memory, in this process.

    Args:
        content: of a ``.pth`` or ``.safetensors`` file. Kept until :func:`forget` is called.
    """
    name = f'{_MEMORY}{next(_numbers)}'
    _held[name] = bytes(content)
    return PREFIX + name


def forget(name: str) -> None:
    """Keep a file of :func:`from_bytes` no longer; nothing happens where there is none."""
    _held.pop(name.removeprefix(PREFIX), None)


def _load(filename: str, map_location: Any = None) -> Any:
    """The host's way to a loader of ours.

    Raises:
        KeysegError: nothing can be read there.
    """
    place = filename.removeprefix(PREFIX)
    if place.startswith(_MEMORY) and place not in _held:
        raise KeysegError(f'{filename}: no such file in this process; keyseg_mm.mm.from_bytes gives names to such')
    try:
        content = _held[place] if place in _held else fileio.get(place)
    except Exception as error:  # backends raise whatever they like
        raise KeysegError(f'{filename} could not be fetched: {type(error).__name__}: {error}') from None
    return read_for_host(io.BytesIO(content), map_location)


def set_up() -> None:
    """Register the loader; once."""
    CheckpointLoader.register_scheme(prefixes=PREFIX, loader=_load, force=True)
