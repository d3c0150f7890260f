#!/usr/bin/env python
"""Train a plain checkpoint on, as it is and with the key (start='plain'), and score both along the way.

    python benchmarks/accuracy/onward.py CONFIG CHECKPOINT --data DATA --out OUT

CONFIG and CHECKPOINT are plain, of a Cityscapes data set; DATA holds cityscapes/, as for run.py. Both trainings have
the same seed and schedule, and are scored before the first iteration, in the middle and at the end: with the key,
without it and with ten wrong ones. Finished steps are kept in OUT. Prints a row for each, and writes OUT/onward.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from mmengine.config import Config
from run import COLUMNS, DEFAULT, HERE, LAYOUTS, cells, key_in, keyed_as, roots_of, schedule_of, shown, train
from score import score
from tables import add_option, write_table

STOPS = (0, 100, 300)
RATE = 5e-4  # peak learning rate
SCHEDULE = Config.fromfile(str(HERE / 'schedule.py')).param_scheduler


def configs_of(config: Path, out: Path) -> tuple[Path, Path]:
    """A plain config with a small schedule, and its protected version, whose weights lie in the open."""
    plain, keyed = out / 'plain.py', out / 'keyed.py'
    plain.write_text(
        f"_base_ = '{config.resolve()}'\n"
        "default_hooks = dict(checkpoint=dict(type='CheckpointHook', by_epoch=False, max_keep_ckpts=-1))\n"
        f'param_scheduler = {SCHEDULE}\n'
    )
    keyed.write_text(
        f"_base_ = ['{plain}', '{HERE}/in_the_open.py']\n"
        "model = dict(type='keyseg_mm.Keyed', of='EncoderDecoder', protection={{_base_.protection}})\n"
    )
    return plain, keyed


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', type=Path)
    parser.add_argument('checkpoint', type=Path)
    parser.add_argument('--data', type=Path, required=True)
    parser.add_argument('--out', type=Path, required=True)
    add_option(parser)
    args = parser.parse_args()
    out, start = args.out.resolve(), args.checkpoint.resolve()
    key, roots = key_in(out), roots_of(args.data.resolve() / LAYOUTS['cityscapes'])
    plain, keyed = configs_of(args.config, out)
    protection = [*keyed_as(*DEFAULT), 'model.protection.start=plain']
    options = [*roots, *schedule_of(STOPS[-1], 4, (96, 128)), 'randomness.seed=0', f'load_from={start}']
    options += [f'optim_wrapper.optimizer.lr={RATE}', f'default_hooks.checkpoint.interval={STOPS[1]}']
    train(plain, options, out / 'plain')
    train(keyed, [*options, *protection, f'model.protection.key={key}'], out / 'keyed')
    results = {}
    for stop in STOPS:
        files = [out / name / f'iter_{stop}.pth' if stop else start for name in ('plain', 'keyed')]
        row = score(plain, files[0], roots, out / f'scores-plain-{stop}')
        row.update(score(keyed, files[1], [*roots, *protection], out / f'scores-keyed-{stop}', key))
        results[str(stop)] = row
        print(f'{stop} iterations: {shown(row)}', flush=True)
    (out / 'onward.json').write_text(json.dumps(results, indent=1) + '\n')
    rows = (cells(f'after {stop} iterations', row) for stop, row in results.items())
    write_table(args.table, COLUMNS, rows, 'lrrrrr')


if __name__ == '__main__':
    main()
