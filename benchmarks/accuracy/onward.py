#!/usr/bin/env python
"""Train a trained model on, plain and protected, and test it with the right key, without one and with wrong ones.

    python benchmarks/accuracy/onward.py --data DATA --out OUT [--model segformer ...] [--seed 0]

The plain training of run.py in OUT is trained on for 300 iterations, as audits.py does: once as it is, and once locked
at `stages` with `ChannelPermutation` and trained on as a protected model, with the same seed and schedule. Both start
from the same function. Finished steps are kept in OUT. Prints a row for each model.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from audits import Files
from run import MODELS, PAPER, floor_of, test, test_keys, train


def measure(files: Files) -> dict[str, float]:
    """All figures of one model."""
    plain, start = files.tuned(), files.lock(files.public, *PAPER, 'locked-start.pth')
    keyed_options = [*files.options, 'model.protection.points=checkpoint']
    options = [*files.fine_tuning(start), *keyed_options, files.keyed]
    keyed = train(files.keyed_config, options, files.folder / 'keyed-onward')
    row = {'floor': floor_of(files.plain_config, files.root)}
    row['plain'] = test(files.plain_config, plain, files.options, files.folder / 'test-tuned')
    key = f'file:{files.key_file}'
    return {**row, **test_keys(files.keyed_config, keyed, keyed_options, key, files.folder, 'test-onward-{}')}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', type=Path, required=True)
    parser.add_argument('--out', type=Path, required=True)
    parser.add_argument('--model', nargs='+', choices=MODELS, default=['segformer'])
    parser.add_argument('--seed', type=int, default=0, help="of run.py's trainings (0)")
    args = parser.parse_args()
    for model in args.model:
        row = measure(Files(model, args.data.resolve(), args.out.resolve(), args.seed))
        print(f'{model}, trained on: ' + ', '.join(f'{k} {v:.2f}' for k, v in row.items()), flush=True)


if __name__ == '__main__':
    main()
