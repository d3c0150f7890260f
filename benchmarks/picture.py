"""Draw the picture of README.md: one street scene, and what three people see of it with the demo's model.

keyseg demo --out demo_out
python benchmarks/picture.py --demo demo_out --out docs/images/street.png
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import cv2
import numpy as np
from matplotlib.figure import Figure
from mmseg.datasets import CityscapesDataset

from keyseg_mm.demo import run as demo

TITLES = {
    demo.RIGHT: 'sealed file, with its key',
    demo.NONE: 'sealed file, without the key',
    demo.BARE: 'its weights, without the tables',
}


def main() -> None:
    """Test the demo's files again, and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--demo', type=Path, default=Path('demo_out'), help='folder of a demo')
    parser.add_argument('--out', type=Path, required=True, help='PNG to write')
    args = parser.parse_args()
    iterations = json.loads((args.demo / demo.RESULTS).read_text())['iterations']
    sealed, opened = args.demo / demo.TRAIN / f'iter_{iterations}.pth', args.demo / demo.OPENED
    key = f'file:{(args.demo / demo.KEY).resolve()}'
    results = [demo.Result(demo.RIGHT, key), demo.Result(demo.NONE, 'none'), demo.Result(demo.BARE, 'none')]
    with demo.quiet(args.demo / demo.LOG):
        for result, file in zip(results, (sealed, sealed, opened)):
            demo._test(args.demo, file, result)
    draw(args.out, results)


def draw(out: Path, results: list[demo.Result]) -> None:
    """The scene with most classes in it, in four panels."""
    colours = np.array(CityscapesDataset.METAINFO['palette'], np.uint8)
    shown = int(np.argmax([len(np.unique(truth)) for truth in results[0].truth]))
    panels = [('a street scene\n', cv2.cvtColor(cv2.imread(results[0].images[shown]), cv2.COLOR_BGR2RGB))]
    panels += [(f'{TITLES[r.who]}\nmIoU {r.miou:.1f}', colours[r.labels[shown]]) for r in results]
    figure = Figure(figsize=(12.4, 2.2), dpi=120, layout='constrained')
    for cell, (title, image) in zip(figure.subplots(1, len(panels)), panels):
        cell.imshow(image, interpolation='nearest')
        cell.set_axis_off()
        cell.set_title(title, loc='left', size=12)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out)


if __name__ == '__main__':
    main()
