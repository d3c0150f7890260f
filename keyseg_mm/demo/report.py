"""The demo's results: as a table, in words, and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from keyseg_mm.mm.floor import PROMISE

RIGHT, NONE = 'sealed file, right key', 'sealed file, no key'
BARE, WRONG = 'opened, no tables', 'opened, wrong tables'
_BAR = 26  # characters of the longest bar
_SHOWN = 4  # scenes in the picture


@dataclass
class Result:
    """One test of the checkpoint.

    Attributes:
        who: who tests.
        key: the key, by its locator.
        miou: in percent.
        images: files of the scenes.
        truth: their true label maps (H, W).
        labels: the label maps that the model gave them.
    """

    who: str
    key: str
    miou: float = 0.0
    images: list[str] = field(default_factory=list)
    truth: list[NDArray[np.integer[Any]]] = field(default_factory=list)
    labels: list[NDArray[np.integer[Any]]] = field(default_factory=list)

    def add(self, samples: Sequence[Any]) -> None:
        """Take in scenes, as the host's test loop hands them out."""
        for sample in samples:
            self.images.append(sample.img_path)
            self.truth.append(sample.gt_sem_seg.data[0].cpu().numpy())
            self.labels.append(sample.pred_sem_seg.data[0].cpu().numpy())


def table(results: Sequence[Result], floor: float, majority: str) -> str:
    """The results, and the constant-prediction floor: that of the class of most pixels, ``majority``."""
    rows = [(r.who, r.key, r.miou) for r in results] + [('constant guess', f'"{majority}" everywhere', floor)]
    wide, longest = max(len(key) for _, key, _ in rows), max(miou for _, _, miou in rows)
    head = f'{"who":<22} {"key":<{wide}} {"mIoU":>6} {"x floor":>8}'
    lines = [head, '-' * (len(head) + 2 + _BAR)]
    for who, key, miou in rows:
        bar = '#' * round(_BAR * miou / longest)
        lines.append(f'{who:<22} {key:<{wide}} {miou:6.2f} {miou / floor:8.1f}  {bar}'.rstrip())
    return '\n'.join(lines)


def meaning(results: Sequence[Result], floor: float) -> str:
    """What the figures say, in a few sentences that depend on them."""
    right = next(r.miou for r in results if r.who == RIGHT)
    times = max(r.miou for r in results if r.who in (BARE, WRONG)) / floor
    if right < 2 * PROMISE * floor:
        return 'The model has not learnt enough for the key to matter: run the demo with more --iterations.'
    said = (
        'All of these are one model on the same scenes. Its file is sealed by a cipher: without the key it is noise, '
        'and stays so whatever else one has. Weights that were taken out of memory, behind their maps and without the '
        'tables, '
        f'score at most {times:.1f} times what a constant guess without any model does'
    )
    if times > PROMISE:
        return f'{said}, more than the {PROMISE} that a well trained model leaves; the key is new in every run.'
    return f'{said}; what could be made of those with training data is what `keyseg audit` measures.'


def draw(path: Path, results: Sequence[Result], classes: Sequence[str], palette: Sequence[Sequence[int]]) -> None:
    """Draw scenes, ground truth, and what the right key, no key and a wrong key give, side by side, as a PNG.

    Args:
        path: file to make.
        results: of which the first of each kind is shown.
        classes: names of the classes, by label.
        palette: their RGB colours, by label.
    """
    first = {result.who: result for result in reversed(results)}
    right, colours = first[RIGHT], np.array(palette, np.uint8)
    # The scenes with most classes in them: chosen by the ground truth alone, not by what came out well.
    shown = np.argsort([len(np.unique(truth)) for truth in right.truth])[-_SHOWN:]
    photos = [cv2.cvtColor(cv2.imread(image), cv2.COLOR_BGR2RGB) for image in right.images]
    columns = [('street scene\n', photos), ('ground truth\n', [colours[truth] for truth in right.truth])]
    for who, result in reversed(first.items()):
        columns.append((f'{who}\nmIoU {result.miou:.1f}', [colours[labels] for labels in result.labels]))
    figure = Figure(figsize=(3 * len(columns), 1.5 * len(shown) + 1.6), dpi=130, layout='constrained')
    for row, cells in zip(shown, figure.subplots(len(shown), len(columns), squeeze=False)):
        for cell, (title, panels) in zip(cells, columns):
            cell.imshow(panels[row], interpolation='nearest')
            cell.set_axis_off()
            if row == shown[0]:
                cell.set_title(title, loc='left', size=14)
    present = np.unique([right.truth[row] for row in shown])
    squares = [Patch(color=colours[label] / 255, label=classes[label]) for label in present]
    figure.legend(handles=squares, loc='outside lower center', ncols=len(squares), frameon=False, handlelength=1)
    figure.savefig(path)
