"""The demo's results, as a table and in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keyseg_mm.mm.floor import PROMISE

RIGHT, NONE, WRONG = 'the right key', 'no key', 'a wrong key'
_BAR = 26  # characters of the longest bar


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

    @property
    def slug(self) -> str:
        """A name for files."""
        return {RIGHT: 'right-key', NONE: 'no-key'}.get(self.who, self.key.replace(':', '-'))

    def add(self, sample: Any) -> None:
        """Take in one scene, as the host's test loop hands it out."""
        self.images.append(sample.img_path)
        self.truth.append(sample.gt_sem_seg.data[0].cpu().numpy())
        self.labels.append(sample.pred_sem_seg.data[0].cpu().numpy())


def table(results: Sequence[Result], floor: float, majority: str, blocks: bool = True) -> str:
    """The table of the results, beside the constant-prediction floor.

    Args:
        results: in the order of the rows.
        floor: constant-prediction floor, mIoU in percent.
        majority: the class whose constant prediction gives the floor.
        blocks: draw with block characters, not with ASCII's.
    """
    block, rule = ('█', '─') if blocks else ('#', '-')
    rows = [(r.who, r.key, r.miou) for r in results] + [('constant guess', f'"{majority}" everywhere', floor)]
    wide = max(len(key) for _, key, _ in rows)
    longest = max(miou for _, _, miou in rows) or 1.0
    head = f'{"who":<15} {"key":<{wide}} {"mIoU":>6} {"x floor":>8}'
    lines = [head, rule * (len(head) + 2 + _BAR)]
    for who, key, miou in rows:
        share = f'{miou / floor:.1f}' if floor else '-'
        bar = block * round(_BAR * miou / longest)
        lines.append(f'{who:<15} {key:<{wide}} {miou:6.2f} {share:>8}  {bar}'.rstrip())
    return '\n'.join(lines)


def meaning(results: Sequence[Result], floor: float) -> str:
    """What the figures say, in a few sentences that depend on them."""
    right = next(r.miou for r in results if r.who == RIGHT)
    without = [r.miou for r in results if r.who != RIGHT]
    best = max(without)
    said = (
        'All of these are one checkpoint, the same weights on the same scenes; only the key differs. With its key the '
        f'model reaches {right:.1f} mIoU, without it {min(without):.1f} to {best:.1f}. The floor, {floor:.1f}, is what '
        'a constant guess scores, without any model. '
    )
    if right < 2 * PROMISE * floor:
        return said + 'The model has not learnt enough for the key to matter: run the demo with more --iterations.'
    if best <= PROMISE * floor:
        return said + (
            f'So whoever has the file but not the key gets at most {best / floor:.1f} times that floor: as they are, '
            'the weights are of no use to them. What they could make of them with training data of their own is not '
            'measured here.'
        )
    return said + (
        f'The best of the others gets {best / floor:.1f} times that floor, more than the {PROMISE} that a well trained '
        'model leaves them; the key is drawn anew in every run, and this figure with it.'
    )


def next_steps(config: str, checkpoint: str) -> str:
    """Command lines to go on with; the paths are quoted for a shell."""
    return f"""\
  see what the checkpoint says of its protection
      keyseg show {checkpoint}
  test it yourself, with whatever key
      keyseg test {config} {checkpoint} --cfg-options model.protection.key=none
  make a key for a model of your own
      keyseg keygen --out my.key
  protect a config of your own
      with the three lines marked in {config}"""
