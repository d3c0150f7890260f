"""A found file's weights in the original's places, whatever their names and the order and scale of their channels.

Who permutes a model's channels, or rescales them, or folds norms into convolutions, changes nothing that it predicts.
So each weight is matched with the original's by itself: rows and columns are brought to one size (Sinkhorn's scaling),
rows are matched by what no order of the columns changes, then columns by rows and rows by columns. No attempt of this
looks at a pattern, so that whatever it gets wrong accuses nobody.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from keyseg_mm.maps.matching import assign, unit
from keyseg_mm.tracing.marking import carriers

Weight = NDArray[np.float32]  # (rows, columns, kernel): out channels, in channels, places of a convolution's kernel
_ALIKE = 0.5  # median cosine of rows: by chance it is near 0, and of a copy it is near 1
_ROUNDS = 2  # of matching columns by rows and rows by columns
_SCALINGS = 12
_MOST_ROWS = 4096  # an assignment of more would take too long
_MOST_WASTED = 5 * 10**7  # values of weights that were matched in vain: it is another model


@dataclass(frozen=True)
class Aligned:
    """A weight of the original, and the found one in its order.

    Attributes:
        name: in the original.
        original, found: (rows, columns, kernel).
        moved: whether channels had to be put into another order.
    """

    name: str
    original: Weight
    found: Weight
    moved: bool = False


def align(found: Mapping[str, Any], original: Mapping[str, Any]) -> Iterator[Aligned]:
    """The original's weights that the found file has too, one after another.

    Args:
        found: tensors by name, of any dtype; names need not be the original's.
        original: the plain state_dict.
    """
    wasted = 0

    def attempt(name: str, ours: Weight, theirs: Tensor, matching: bool) -> Aligned | None:
        nonlocal wasted
        centred = ours if theirs.is_floating_point() else _centred(ours)  # integers have a zero point
        made = _made_alike(centred, theirs, original[name], matching and wasted < _MOST_WASTED)
        if made is None and matching and theirs.numel() == ours.size:
            wasted += ours.size
        return None if made is None else Aligned(name, centred, *made)

    spare = {n: t for n, t in found.items() if isinstance(t, Tensor) and t.dim() > 1 and not t.is_complex()}
    waiting: list[tuple[str, Weight]] = []
    for name, tensor in carriers(original).items():
        ours = weight_of(tensor)
        theirs = spare.get(name)
        made = None if theirs is None else attempt(name, ours, theirs, matching=True)
        if made is None:
            waiting.append((name, ours))
        else:
            del spare[name]
            yield made
    for matching in (False, True):  # what has its channels in their places is found at once
        for name, ours in list(waiting):
            for other, theirs in list(spare.items()):
                made = attempt(name, ours, theirs, matching)
                if made is not None:
                    del spare[other]
                    waiting = [item for item in waiting if item[0] != name]
                    yield made
                    break


def weight_of(tensor: Tensor) -> Weight:
    """A weight as rows, columns and kernel."""
    flat = tensor.detach().cpu().float().contiguous()
    return np.asarray(flat.reshape(flat.shape[0], flat.shape[1], -1).numpy())


def _centred(weight: Weight) -> Weight:
    return np.asarray(weight - weight.mean((1, 2), keepdims=True))


def _made_alike(ours: Weight, theirs: Tensor, tensor: Tensor, matching: bool) -> tuple[Weight, bool] | None:
    """The found weight in the original's order, and whether that was another one; None where they are not alike."""
    for turned in (theirs, theirs.t()) if theirs.dim() == 2 else (theirs,):
        if turned.numel() != tensor.numel() or turned.shape[:2] != tensor.shape[:2]:
            continue
        weight = weight_of(turned) if theirs.is_floating_point() else _centred(weight_of(turned))
        if likeness(weight, ours) >= _ALIKE:
            return weight, False
        found = matched(weight, ours) if matching else None
        if found is not None:
            return found, True
    return None


def likeness(found: Weight, original: Weight) -> float:
    """Median over the rows of the cosine; a negated row is as good."""
    products = np.einsum('oik,oik->o', found, original)
    sizes = np.linalg.norm(found, axis=(1, 2)) * np.linalg.norm(original, axis=(1, 2))
    return float(np.median(np.abs(products) / np.maximum(sizes, 1e-20)))


def matched(found: Weight, original: Weight) -> Weight | None:
    """A weight with its rows and columns, signs included, in the order in which they are most like the original's.

    None where no order makes them alike.
    """
    if max(found.shape[:2]) > _MOST_ROWS:
        return None
    theirs, ours = _balanced(found), _balanced(original)
    rows = _nearest(*(np.sort(np.abs(w), axis=1).reshape(len(w), -1) for w in (theirs, ours)))
    columns, row_signs = np.arange(found.shape[1]), np.ones(len(found), np.float32)
    column_signs = np.ones(found.shape[1], np.float32)
    for _ in range(_ROUNDS):
        if len(columns) > 1:
            columns, column_signs = _paired(theirs[rows] * row_signs[:, None, None], ours, axis=1)
        turned = theirs[:, columns] * column_signs[:, None]
        rows, row_signs = _paired(turned, ours, axis=0)
    best: Weight = found[rows][:, columns] * column_signs[:, None] * row_signs[:, None, None]
    return best if likeness(best, original) >= _ALIKE else None


def _paired(theirs: Weight, ours: Weight, axis: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """For each of our rows (or columns) which of theirs is most like it, and with which sign."""
    a, b = (unit(np.moveaxis(w, axis, 0).reshape(w.shape[axis], -1)) for w in (ours, theirs))
    cosines = a @ b.T
    table = assign(np.abs(cosines))
    return table, np.where(cosines[np.arange(len(table)), table] < 0, -1, 1).astype(np.float32)


def _nearest(theirs: NDArray[Any], ours: NDArray[Any]) -> NDArray[np.int64]:
    """For each of our rows the one of theirs that is nearest to it, one to one."""
    return assign(2 * ours @ theirs.T - (theirs**2).sum(1))


def _balanced(weight: Weight) -> Weight:
    """Rows and columns of one size each: what no rescaling of channels changes (Sinkhorn and Knopp 1967)."""
    squares = (weight.astype(np.float64) ** 2).sum(2)
    rows, columns = np.ones(squares.shape[0]), np.ones(squares.shape[1])
    for _ in range(_SCALINGS):
        rows = 1 / np.maximum(squares @ columns / squares.shape[1], 1e-20)
        columns = 1 / np.maximum(squares.T @ rows / squares.shape[0], 1e-20)
    scaled: Weight = (weight * np.sqrt(rows)[:, None, None] * np.sqrt(columns)[:, None]).astype(np.float32)
    return scaled
