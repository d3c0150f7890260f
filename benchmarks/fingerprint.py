#!/usr/bin/env python
"""What a customer's copy costs to make, with their fingerprint and without, and how long tracing one takes.

    python benchmarks/fingerprint.py [--model fcn_r101] [--rounds 6] [--names 10000] [--json FILE] [--smoke]

A module with the shapes of FCN-R101 gets random weights and files; the host is not needed. By turns, against reading a
plain file and writing it again, to the disk: copies of a plain file (`lock`), of a sealed one, and of one with maps in
its weights at all layers (`rekey --licensee`). Ratios are medians over pairs, with quartiles; `noise` is the same of
the base against itself. Then a copy is opened, moved by noise as fine-tuning does, and traced among the names, files
read and all; the seconds are those of the clock and of the processor, with all threads.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rivals import synced
from shapes import MODELS, module_of
from tables import add_option, spread, write_table
from timing import time_ways
from torch import Tensor

from keyseg_mm import Sealing, SecretKey, seal_file
from keyseg_mm.bind import licensee_salt
from keyseg_mm.checkpoint.files import read_checkpoint
from keyseg_mm.checkpoint.rekeying import change_maps_file
from keyseg_mm.entries import MapEntry
from keyseg_mm.locking import Plan, lock_in_place
from keyseg_mm.seal.sections import seal_checkpoint
from keyseg_mm.tracing import Fingerprint, trace

MASTER, NAME = SecretKey(bytes(range(32))), 'customer 7'
LICENSEE = MASTER.licensee(NAME)
TITLES = {
    'lock': '`lock` of a plain file',
    'rekey': '`rekey` of a sealed file',
    'rekey of maps': '`rekey` of a file with maps at all layers',
}
LIMIT = '1.3'  # of a copy with a fingerprint, over a plain file read and written


def write_files(folder: Path, weights: dict[str, Tensor]) -> dict[str, Path]:
    """The owner's files: plain, sealed, and with maps at all layers."""
    files = {name: folder / f'{name}.pth' for name in ('plain', 'sealed', 'maps', 'out', 'found')}
    torch.save({'state_dict': weights}, files['plain'])
    seal_file(files['plain'], Sealing(MASTER), files['sealed'])
    kind = {'type': 'SignedChannelPermutation'}
    entries = tuple(
        MapEntry(f'in:{n.removesuffix(".weight")}', t.shape[1], kind, (n,))
        for n, t in weights.items()
        if n.endswith('.weight') and t.dim() > 1 and t.shape[1] > 1
    )
    locked = {n: t.clone() for n, t in weights.items()}
    lock_in_place(locked, Plan('features', entries), MASTER)
    torch.save(seal_checkpoint({'state_dict': locked}, Sealing(MASTER)), files['maps'])
    return files


def ways(files: dict[str, Path]) -> dict[str, Callable[[], object]]:
    """What makes a copy, and the base that it is compared with."""
    out, how, mark = files['out'], Sealing(LICENSEE), Fingerprint(MASTER, NAME)

    def plain() -> None:
        content = torch.load(files['plain'], 'cpu', weights_only=True)
        synced(out, lambda file: torch.save(content, file))

    def rekey(path: Path, mark: Fingerprint | None = None) -> None:
        salt = partial(licensee_salt, MASTER, NAME)
        change_maps_file(path, MASTER, LICENSEE, out, salt=salt, overwrite=True, mark=mark)

    return {
        'base': plain,
        'lock, exact': lambda: seal_file(files['plain'], how, out, overwrite=True),
        'lock, fingerprint': lambda: seal_file(files['plain'], how, out, overwrite=True, mark=mark),
        'rekey, exact': lambda: rekey(files['sealed']),
        'rekey, fingerprint': lambda: rekey(files['sealed'], mark),
        'rekey of maps, exact': lambda: rekey(files['maps']),
        'rekey of maps, fingerprint': lambda: rekey(files['maps'], mark),
    }


def traced(files: dict[str, Path], names: list[str], noise: float = 0.01) -> dict[str, Any]:
    """Seconds to trace a copy, files read and all, and what was said of it."""
    tensors = read_checkpoint(files['plain'], mapped=False)['state_dict']
    Fingerprint(MASTER, NAME).put(tensors)
    draw = torch.Generator().manual_seed(0)
    for value in tensors.values():
        if value.is_floating_point() and value.dim() > 1:
            value += noise * value.std() * torch.randn(value.shape, generator=draw)
    torch.save({'state_dict': tensors}, files['found'])
    wall, cpu = time.perf_counter(), time.process_time()
    found, original = (read_checkpoint(files[name])['state_dict'] for name in ('found', 'plain'))
    verdict = trace(found, original, MASTER, names)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    best, second = verdict.scores[:2]
    return {
        'names': len(names),
        'wall s': wall,
        'cpu s': cpu,
        'owners': verdict.owners,
        'z': best.z,
        'next z': second.z,
        'noise': noise,
    }


def table(ratios: dict[str, Any]) -> Iterator[list[str]]:
    """A row for each way to make a copy."""
    for way, title in TITLES.items():
        yield [title, *(spread(ratios[f'{way}, {kind}']) for kind in ('exact', 'fingerprint')), LIMIT]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--model', choices=MODELS, default='fcn_r101')
    parser.add_argument('--rounds', type=int, default=6, help='0 leaves the copies out')
    parser.add_argument('--names', type=int, default=10_000)
    parser.add_argument('--json', type=Path, metavar='FILE', help='write all figures there')
    add_option(parser)
    parser.add_argument('--smoke', action='store_true', help='a tiny module, short: only see that it runs')
    args = parser.parse_args()
    model, rounds, count = ('tiny', 2, 50) if args.smoke else (args.model, args.rounds, args.names)
    with tempfile.TemporaryDirectory() as name:
        files = write_files(Path(name), dict(module_of(model).state_dict()))
        found: dict[str, Any] = {'threads': torch.get_num_threads(), 'MiB': files['plain'].stat().st_size / 2**20}
        if rounds:
            found['copies'] = time_ways(ways(files), rounds, 'copies', lambda: files['out'].unlink())
            copies = found['copies']
            print(f'{model}, {found["MiB"]:.0f} MiB: a plain file read and written {copies["base s"]:.3f} s')
            print(f'like pairs {spread(copies["noise"])}')
            columns = ('', 'bit-exact', 'with a fingerprint', 'limit we set')
            write_table(args.table, columns, table(copies['ratios']))
        found['trace'] = traced(files, [f'customer {i}' for i in range(count)])
    print(
        'traced: '
        + ', '.join(f'{k} {v:.2f}' if isinstance(v, float) else f'{k} {v}' for k, v in found['trace'].items())
    )
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + '\n')


if __name__ == '__main__':
    main()
