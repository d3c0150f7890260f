"""What modules return: tensors, or nested tuples and lists of them, counted depth first."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor

from keyseg_mm.errors import PointError


def form_of(output: Any) -> int:
    """0 for a single tensor, else the number of tensors."""
    return 0 if isinstance(output, Tensor) else sum(1 for _ in flat_tensors(output))


def flat_tensors(value: Any) -> Iterable[Tensor]:
    """The tensors of nested tuples and lists, depth first."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from flat_tensors(item)


def replace_tensor(output: Any, index: int, change: Callable[[Tensor], Tensor]) -> Any:
    """A tensor, or nested tuples and lists, with the tensor of that index, counted depth first, changed.

    Raises:
        PointError: there are fewer tensors.
    """
    left = index

    def walk(value: Any) -> Any:
        nonlocal left
        if isinstance(value, Tensor):
            left -= 1
            return change(value) if left == -1 else value
        if isinstance(value, (tuple, list)):
            items = [walk(item) for item in value]
            return type(value)(*items) if hasattr(value, '_fields') else type(value)(items)
        return value

    changed = walk(output)
    if left >= 0:
        raise PointError(f'a module returned {index - left} map(s), and number {index} is the one that is encrypted')
    return changed
