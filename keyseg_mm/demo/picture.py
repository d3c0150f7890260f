"""The demo's picture: scenes, ground truth, and what users with and without the key see, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from keyseg_mm.atomic import write_new
from keyseg_mm.demo.report import NONE, RIGHT, Result
from keyseg_mm.errors import KeysegError

Pixels = NDArray[np.uint8]

GREEN, RED, GREY, INK = '#1a7f37', '#c2261d', '#57606a', '#1f2328'
# inches
_PANEL, _GAP, _MARGIN = 3.0, 0.08, 0.22
_HEAD, _FOOT = 1.22, 0.86
_DPI = 130
_SHOWN = 4  # scenes


@dataclass(frozen=True)
class Column:
    """One column of the picture.

    Attributes:
        title: what it shows.
        caption: a line below the title.
        colour: of the caption.
        panels: RGB images (H, W, 3), one for each scene.
        labels: the panels are painted label maps, not photos: shown pixel by pixel.
    """

    title: str
    caption: str
    colour: str
    panels: Sequence[Pixels]
    labels: bool = True


def compare(
    path: Path, results: Sequence[Result], floor: float, classes: Sequence[str], palette: Sequence[Sequence[int]]
) -> None:
    """Draw scenes, ground truth, and what the right key, no key and a wrong key give, side by side.

    Args:
        path: PNG to make.
        results: of which the first of each kind is shown.
        floor: constant-prediction floor, mIoU in percent.
        classes: names of the classes, by label.
        palette: colours of the classes, by label.
    """
    first: dict[str, Result] = {}
    for result in results:
        first.setdefault(result.who, result)
    right = first[RIGHT]
    # The scenes with most in them, chosen by the ground truth alone: not by what came out well.
    variety = [sum(np.bincount(truth.ravel()) > 40) for truth in right.truth]
    shown = sorted(np.argsort(variety, kind='stable')[-_SHOWN:].tolist())
    columns = [
        Column('street scene', 'made on the spot', GREY, [_read(right.images[i]) for i in shown], labels=False),
        Column(
            'ground truth', 'what a perfect model says', GREY, [paint_labels(right.truth[i], palette) for i in shown]
        ),
    ]
    for who, result in first.items():
        title = who if who in (RIGHT, NONE) else f'{who} ({result.key})'
        painted = [paint_labels(result.labels[i], palette) for i in shown]
        columns.append(Column(title, f'mIoU {result.miou:.1f}', GREEN if who == RIGHT else RED, painted))
    present = np.unique(
        np.concatenate([m[i].ravel() for i in shown for m in (right.truth, *(r.labels for r in first.values()))])
    )
    legend = {classes[k]: palette[k] for k in present if k < len(classes)}
    note = f'mIoU in percent, over {len(right.truth)} test scenes; a constant guess without a model scores {floor:.1f}.'
    draw(path, 'One model, one checkpoint: only the key differs', note, columns, legend)


def _read(path: str) -> Pixels:
    """An image file as RGB."""
    image = cv2.imread(path)
    if image is None:
        raise KeysegError(f'could not read {path}')
    return np.ascontiguousarray(image[..., ::-1], dtype=np.uint8)


def paint_labels(label: NDArray[np.integer[Any]], palette: Sequence[Sequence[int]]) -> Pixels:
    """A label map (H, W) in its classes' colours (H, W, 3); labels without one are black."""
    colours = np.zeros((256, 3), np.uint8)
    colours[: len(palette)] = palette
    painted: Pixels = colours[label.astype(np.uint8)]
    return painted


def draw(path: Path, title: str, note: str, columns: Sequence[Column], legend: dict[str, Sequence[int]]) -> None:
    """Write the picture as a PNG.

    Args:
        path: file to make.
        title: headline.
        note: a line at the foot.
        columns: from left to right.
        legend: colours by class name.

    Raises:
        KeysegError: the file exists, or cannot be written.
    """
    count, rows = len(columns), len(columns[0].panels)
    tall = _PANEL * columns[0].panels[0].shape[0] / columns[0].panels[0].shape[1]
    width = 2 * _MARGIN + count * _PANEL + (count - 1) * _GAP
    height = _HEAD + rows * tall + (rows - 1) * _GAP + _FOOT
    figure = Figure(figsize=(width, height), dpi=_DPI, facecolor='white')
    FigureCanvasAgg(figure)  # without pyplot: it opens no window and keeps no figures
    figure.text(_MARGIN / width, 1 - 0.34 / height, title, size=19, weight='bold', color=INK, va='center')
    for i, column in enumerate(columns):
        left = _MARGIN + i * (_PANEL + _GAP)
        figure.text(left / width, 1 - 0.76 / height, column.title, size=14, weight='bold', color=INK, va='center')
        figure.text(left / width, 1 - 1.03 / height, column.caption, size=12.5, color=column.colour, va='center')
        for j, panel in enumerate(column.panels):
            bottom = height - _HEAD - tall - j * (tall + _GAP)
            axes = figure.add_axes((left / width, bottom / height, _PANEL / width, tall / height))
            axes.imshow(panel, interpolation='nearest' if column.labels else 'bicubic', aspect='auto')
            axes.set_axis_off()
    _draw_legend(figure, width, height, legend)
    figure.text(_MARGIN / width, 0.22 / height, note, size=12, color=GREY, va='center')
    write_new(path, lambda file: figure.savefig(file, format='png'))


def _draw_legend(figure: Figure, width: float, height: float, legend: dict[str, Sequence[int]]) -> None:
    """One row of coloured squares with names, at even distances."""
    y, square, gap = 0.52, 0.17, 0.07
    names = [figure.text(0, y / height, name, size=11, color=INK, va='center') for name in legend]
    needed = [square + gap + name.get_window_extent().width / figure.dpi for name in names]
    spare = (width - 2 * _MARGIN - sum(needed)) / max(len(names) - 1, 1)
    left = _MARGIN
    for name, rgb, room in zip(names, legend.values(), needed):
        colour = tuple(channel / 255 for channel in rgb)
        corner = (left / width, (y - square / 2) / height)
        figure.add_artist(Rectangle(corner, square / width, square / height, facecolor=colour))
        name.set_x((left + square + gap) / width)
        left += room + min(spare, 0.5)
