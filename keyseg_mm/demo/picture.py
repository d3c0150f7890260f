"""The demo's picture: scenes, ground truth, and what users with and without the key see, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from keyseg_mm.atomic import write_new
from keyseg_mm.demo.report import NONE, RIGHT, Result
from keyseg_mm.errors import KeysegError

Pixels = NDArray[np.uint8]
Colours = Sequence[Sequence[int]]

GREEN, RED, GREY, INK = '#1a7f37', '#c2261d', '#57606a', '#1f2328'
_PANEL, _HEAD, _FOOT = 3.06, 1.2, 0.8  # inches: width of a column, height of the lines above and below the panels
_DPI = 130
_SHOWN = 4  # scenes


class Column(NamedTuple):
    """One column of the picture."""

    title: str
    caption: str  # below the title
    colour: str  # of the caption
    panels: Sequence[Pixels]  # RGB (H, W, 3), one for each scene
    interpolation: str = 'nearest'  # label maps are enlarged pixel by pixel


def compare(path: Path, results: Sequence[Result], floor: float, classes: Sequence[str], palette: Colours) -> None:
    """Draw scenes, ground truth, and what the right key, no key and a wrong key give, side by side.

    Args:
        path: PNG to make.
        results: of which the first of each kind is shown.
        floor: constant-prediction floor, mIoU in percent.
        classes: names of the classes, by label.
        palette: colours of the classes, by label.

    Raises:
        KeysegError: the file exists, or cannot be written.
    """
    first: dict[str, Result] = {}
    for result in results:
        first.setdefault(result.who, result)
    right = first[RIGHT]
    # The scenes with most in them, chosen by the ground truth alone: not by what came out well.
    variety = [sum(np.bincount(truth.ravel()) > 40) for truth in right.truth]
    shown = sorted(np.argsort(variety, kind='stable')[-_SHOWN:].tolist())

    def painted(maps: Sequence[NDArray[np.integer[Any]]]) -> list[Pixels]:
        return [paint_labels(maps[i], palette) for i in shown]

    columns = [
        Column('street scene', 'made on the spot', GREY, [_read(right.images[i]) for i in shown], 'bicubic'),
        Column('ground truth', 'what a perfect model says', GREY, painted(right.truth)),
    ]
    for who, result in first.items():
        title = who if who in (RIGHT, NONE) else f'{who} ({result.key})'
        columns.append(Column(title, f'mIoU {result.miou:.1f}', GREEN if who == RIGHT else RED, painted(result.labels)))
    maps = [m[i].ravel() for i in shown for m in (right.truth, *(r.labels for r in first.values()))]
    legend = {classes[k]: palette[k] for k in np.unique(np.concatenate(maps)) if k < len(classes)}
    note = f'mIoU in percent, over {len(right.truth)} test scenes; a constant guess without a model scores {floor:.1f}.'
    _draw(path, 'One model, one checkpoint: only the key differs', note, columns, legend)


def _read(path: str) -> Pixels:
    """An image file as RGB."""
    image = cv2.imread(path)
    if image is None:
        raise KeysegError(f'could not read {path}')
    return np.ascontiguousarray(image[..., ::-1], dtype=np.uint8)


def paint_labels(label: NDArray[np.integer[Any]], palette: Colours) -> Pixels:
    """A label map (H, W) in its classes' colours (H, W, 3); labels without one are black."""
    colours = np.zeros((256, 3), np.uint8)
    colours[: len(palette)] = palette
    painted: Pixels = colours[label.astype(np.uint8)]
    return painted


def _draw(path: Path, title: str, note: str, columns: Sequence[Column], legend: dict[str, Sequence[int]]) -> None:
    """Write the picture as a PNG: headline, columns of panels, names of the colours, a note."""
    rows, (high, wide) = len(columns[0].panels), columns[0].panels[0].shape[:2]
    size = len(columns) * _PANEL, rows * _PANEL * high / wide + _HEAD + _FOOT
    figure = Figure(figsize=size, dpi=_DPI, facecolor='white')
    FigureCanvasAgg(figure)  # without pyplot: it opens no window and keeps no figures
    left, right, bottom, top = 0.015, 0.985, _FOOT / size[1], 1 - _HEAD / size[1]
    room: dict[str, Any] = {'left': left, 'right': right, 'bottom': bottom, 'top': top, 'wspace': 0.03, 'hspace': 0.03}
    grid = figure.subplots(rows, len(columns), squeeze=False, gridspec_kw=room)
    for column, cells in zip(columns, grid.T):
        cells[0].set_title(column.title, loc='left', size=14, weight='bold', color=INK, pad=24)
        cells[0].annotate(
            column.caption, (0, 1), (0, 6), 'axes fraction', 'offset points', color=column.colour, size=12.5
        )
        for cell, panel in zip(cells, column.panels):
            cell.imshow(panel, interpolation=column.interpolation, aspect='auto')
            cell.set_axis_off()
    figure.text(left, 1 - 0.34 / size[1], title, size=19, weight='bold', color=INK, va='center')
    squares = [Patch(color=(rgb[0] / 255, rgb[1] / 255, rgb[2] / 255), label=name) for name, rgb in legend.items()]
    where: dict[str, Any] = {'loc': 'center left', 'bbox_to_anchor': (left - 0.003, 0.52 / size[1]), 'borderpad': 0.0}
    spacing: dict[str, Any] = {'handlelength': 1.0, 'handleheight': 1.0, 'handletextpad': 0.4, 'columnspacing': 1.2}
    looks: dict[str, Any] = {'frameon': False, 'fontsize': 11, 'labelcolor': INK}
    figure.legend(handles=squares, ncols=len(squares), **looks, **where, **spacing)
    figure.text(left, 0.22 / size[1], note, size=12, color=GREY, va='center')
    write_new(path, lambda file: figure.savefig(file, format='png'))
