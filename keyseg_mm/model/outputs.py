"""What modules are given and return: tensors, or nested tuples and lists of them, counted depth first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
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


def replace_inputs(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], names: tuple[str, ...], change: Callable[[Tensor], Tensor]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call, with the tensors changed that go by these names, which are the first of its signature.

    A tensor that is given several times is changed once, and stays one.
    """
    done: list[tuple[Tensor, Tensor]] = []

    def changed(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        for old, new in done:
            if old is value:
                return new
        done.append((value, change(value)))
        return done[-1][1]

    given = tuple(changed(value) if at < len(names) else value for at, value in enumerate(args))
    return given, {name: changed(value) if name in names else value for name, value in kwargs.items()}


def tensors_given(args: tuple[Any, ...], kwargs: Mapping[str, Any], names: tuple[str, ...]) -> list[Tensor]:
    """The tensors of :func:`replace_inputs`."""
    found = [*args[: len(names)], *(value for name, value in kwargs.items() if name in names)]
    return [value for value in found if isinstance(value, Tensor)]
