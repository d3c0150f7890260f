#!/usr/bin/env python
"""What a sealed file is worth to whoever has it and no key: training from it as it is, against training from scratch.

    python benchmarks/accuracy/ciphertext.py CONFIG CHECKPOINT --data-root DATA/cityscapes --out OUT [--seeds 3]

CHECKPOINT is plain; it is locked by `keyseg lock` (maps at `linear`, sealed). For each seed and 1, 5 and 10 % of the
photos two of the audit's controls are run with the same budget: from the ciphertext, and from fresh initial weights.
Prints a row for each share: means and spread over the seeds. Finished runs are kept in OUT. It begins with the audit's
checks of the file.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator
from pathlib import Path

from locking import keyseg
from mmengine.config import Config
from tables import add_option, write_table

import keyseg_mm.mm  # noqa: F401 - the mends, before a config is read
from keyseg_mm import SecretKey, read_key_file, write_key_file
from keyseg_mm.audit.engine.attack import ModelSuite
from keyseg_mm.audit.engine.audit import report_of
from keyseg_mm.audit.engine.runner import Result
from keyseg_mm.audit.model.audit import ModelOrder

SUITE = ModelSuite(60, 60.0, 24, None, 256, (0.01, 0.05, 0.1))  # as audits.py, and time enough for all steps
STARTS = {'from-ciphertext': 'from the sealed file', 'from-scratch': 'from scratch'}


def order_of(args: argparse.Namespace, locked: Path, seed: int) -> ModelOrder:
    """An audit of the file."""
    return ModelOrder(
        config=args.out / 'config.py',
        checkpoint=locked,
        key=f'file:{args.out}/ciphertext.key',
        out=args.out / f'seed{seed}',
        suite='quick',
        seed=seed,
        limits=SUITE,
        bars=False,
    )


def table(found: dict[str, dict[float, list[float]]]) -> Iterator[list[str]]:
    """A row for each share: means, and the least and the most of the seeds."""
    for share in SUITE.shares:
        scores = [found[name][share] for name in STARTS]
        yield [f'{100 * share:g} %', *(f'{statistics.mean(s):.2f} ({min(s):.2f} to {max(s):.2f})' for s in scores)]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', type=Path)
    parser.add_argument('checkpoint', type=Path)
    parser.add_argument('--data-root', required=True, help='root of the data set')
    parser.add_argument('--out', type=Path, required=True)
    parser.add_argument('--seeds', type=int, default=3)
    add_option(parser)
    args = parser.parse_args()
    args.out = args.out.resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    cfg = Config.fromfile(str(args.config))
    for part in ('train', 'val', 'test'):
        cfg[f'{part}_dataloader'].dataset.data_root = args.data_root
    cfg.dump(str(args.out / 'config.py'))
    locked, key = args.out / 'locked.pth', args.out / 'ciphertext.key'
    if not locked.exists():
        write_key_file(key, SecretKey.generate())
        keyseg('lock', args.checkpoint, '--config', args.config, '--key', f'file:{key}', '--out', locked)
    found: dict[str, dict[float, list[float]]] = {name: {} for name in STARTS}
    for seed in range(args.seeds):
        order = order_of(args, locked, seed)
        stage = order.stage(read_key_file(args.out / 'ciphertext.key'), print)
        if not seed:
            for check in report_of(order, stage).checks:
                print(f'  {"passed" if check.passed else "FAILED"}  {check.name}: {check.figure} ({check.bound})')
        for run in stage.runs:
            if run.attack.name in STARTS:
                outcome = stage.runner.run(run)
                assert isinstance(outcome, Result), outcome
                found[run.attack.name].setdefault(run.scenario.share, []).append(outcome.score.miou)
                print(f'seed {seed}, {run.title}, {run.scenario.title}: {outcome.score.miou:.2f}', flush=True)
    (args.out / 'results.json').write_text(json.dumps(found, indent=1) + '\n')
    write_table(args.table, ('photos', *STARTS.values()), table(found))


if __name__ == '__main__':
    main()
