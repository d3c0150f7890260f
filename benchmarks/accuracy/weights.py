#!/usr/bin/env python
"""Encrypt the weights of a trained checkpoint, all of them or a share, and test it with its key and without.

    python benchmarks/accuracy/weights.py CONFIG CHECKPOINT --data-root DATA/cityscapes --out OUT

Everything by the commands a user has: keyseg lock --scheme tensors, --scheme selective --share S, and test. A row says
how many values are moved, and the mIoU with the key (unlocked in memory), without it, with a wrong one, and where
somebody without the key sets the moved values, whose places are public, to zero. Finished steps are kept in OUT.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from locking import keyed_config, keyseg
from run import floor_of, test
from tables import add_option, write_table

from keyseg_mm import SecretKey, write_key_file
from keyseg_mm.checkpoint.files import read_checkpoint, write_checkpoint
from keyseg_mm.maps.order import places, raw
from keyseg_mm.stamp import is_stamp, stamps_of

SHARES = (0.001, 0.005, 0.01, 0.05, 0.2)
WRONG = 'random:1'
ZEROED = 'moved values zeroed'
COLUMNS = ('moved', 'values', 'tensors', 'with the key', 'no key', f'`{WRONG}`', 'moved values set to zero')


def without_the_moved(locked: Path, out: Path) -> Path:
    """The locked file with zeros in the place of every moved value, and no stamp: what anybody can make of it."""
    state = read_checkpoint(locked)['state_dict']
    for tensor in stamps_of(state)[''].tensors:
        for name in tensor.names:
            values = raw(state[name])
            values[places(values, tensor.count)] = 0
            state[name] = values.view(state[name].dtype).view(state[name].shape)
    write_checkpoint(out, {name: value for name, value in state.items() if not is_stamp(name)}, {}, overwrite=True)
    return out


def measure(share: float | None, args: argparse.Namespace, locator: str, keyed: Path) -> dict[str, float]:
    """All figures of one share; None encrypts all values of all tensors."""
    out = args.out / ('tensors' if share is None else f'selective-{share}')
    out.mkdir(exist_ok=True)
    locked = out / 'locked.pth'
    if not locked.exists():
        mode = ['tensors'] if share is None else ['selective', '--share', share]
        how = ['--no-seal', '--config', args.config, '--scheme', *mode]  # what the scheme itself does
        keyseg('lock', args.checkpoint, '--key', locator, '--out', locked, *how)
    state = read_checkpoint(locked)['state_dict']
    tensors = stamps_of(state)[''].tensors
    data = [f'test_dataloader.dataset.data_root={args.data_root}']

    def keyed_test(name: str, key: str) -> float:
        return test(keyed, locked, [*data, f'model.protection.key={key}', 'model.protection.runtime=plain'], out / name)

    row = {
        'values moved': sum(t.count for t in tensors),
        'tensors': len(tensors),
        'key': keyed_test('test-key', locator),
        'no key': keyed_test('test-none', 'none'),
        WRONG: keyed_test('test-wrong', WRONG),
    }
    if share is not None:
        zeroed = without_the_moved(locked, out / 'zeroed.pth')
        row[ZEROED] = test(args.config, zeroed, data, out / 'test-zeroed')
    return row


def cells(share: float | None, row: dict[str, float]) -> list[str]:
    """A row of the table."""
    title = 'all (`--scheme tensors`)' if share is None else f'{100 * share:g} % (`--scheme selective`)'
    mious = [f'{row[name]:.2f}' if name in row else '' for name in ('key', 'no key', WRONG, ZEROED)]
    return [title, f'{row["values moved"]:,}', str(row['tensors']), *mious]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', type=Path)
    parser.add_argument('checkpoint', type=Path)
    parser.add_argument('--data-root', required=True, help='root of the data set that the config tests on')
    parser.add_argument('--out', type=Path, required=True)
    parser.add_argument('--shares', type=float, nargs='+', default=SHARES, help='of the weights, by --scheme selective')
    add_option(parser)
    args = parser.parse_args()
    args.out = args.out.resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    key_file = args.out / 'weights.key'
    if not key_file.exists():
        write_key_file(key_file, SecretKey.generate())
    keyed = keyed_config(args.config, args.out)
    data = [f'test_dataloader.dataset.data_root={args.data_root}']
    plain = test(args.config, args.checkpoint, data, args.out / 'plain')
    results: dict[str, object] = {'floor': floor_of(args.config, args.data_root), 'plain': plain}
    print(f'floor {results["floor"]:.2f}, plain {plain:.2f}', flush=True)
    rows = []
    for share in (None, *args.shares):
        row = measure(share, args, f'file:{key_file}', keyed)
        name = 'all tensors' if share is None else f'{100 * share:g} %'
        results[name] = row
        rows.append(cells(share, row))
        print(', '.join(rows[-1]), flush=True)
    (args.out / 'results.json').write_text(json.dumps(results, indent=1) + '\n')
    write_table(args.table, COLUMNS, rows)


if __name__ == '__main__':
    main()
