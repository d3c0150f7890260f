"""How much a file may hold for its size: what is small on the disk and has no end in memory is an error."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from keyseg_mm.checkpoint.known import Known, UnreadableError

# Of all values together; the training checkpoints of the largest models have a third of it.
_MOST_VALUES = 100_000
_DEEPEST, _MOST_SECTIONS = 50, 100
_ROOM = 256 * 2**20  # bytes beyond twice the size of the file: for tensors that say one value many times


def check_extent(content: Any, size: int) -> None:
    """Make sure that whoever walks what a file holds, and copies it, needs little time and memory.

    Args:
        content: nested dicts, lists, tuples and sets of values.
        size: of the file, in bytes.

    Raises:
        UnreadableError: it holds itself, lies too deep, says the same too often, or holds what only a pickle needs.
    """
    left, room = _MOST_VALUES, 2 * size + _ROOM
    sections = list(content.items()) if isinstance(content, dict) else [(None, content)]
    if len(sections) > _MOST_VALUES or sum(isinstance(section, dict) for _, section in sections) > _MOST_SECTIONS:
        raise UnreadableError
    for name, section in sections:
        views: set[object] = set()  # those of a section are copied once
        below: list[tuple[Any, int]] = [(name, 0), (section, 0)]
        while below:
            value, depth = below.pop()
            left -= 1
            if isinstance(value, Tensor):
                view = (value.data_ptr(), value.dtype, value.shape, value.stride())
                room -= 0 if view in views else value.nbytes
                views.add(view)
            elif isinstance(value, (str, bytes, bytearray)):
                room -= len(value)
            elif isinstance(value, dict):
                left -= len(value)
                below.extend((item, depth + 1) for item in value.values())
                room -= sum(len(key) for key in value if isinstance(key, str))
            elif isinstance(value, (list, tuple, set)):
                below.extend((item, depth + 1) for item in value)
            if isinstance(value, Known) or left - len(below) < 0 or room < 0 or depth > _DEEPEST:
                raise UnreadableError
