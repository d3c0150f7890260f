#!/usr/bin/env python
"""What protection costs: time and memory of keyed models against plain ones, derivation, and `keyseg --help`.

    python benchmarks/overhead.py [--points stages] [--models FCN-R50-D8 ...] [--rounds 24] [--threads 1] [--json FILE]

Plain and keyed (the default, `linear` with signs; or at `stages` a permutation) take turns in one process on one
model, whose encryptors are taken off and put back; the order alternates (A B, B A, ...). Each pair gives a ratio
keyed/plain; the table has their median and quartiles, of wall time; those of processor time, which other processes on
the machine disturb less, are among the figures of --json. `noise` is the same spread for pairs of like runs, which
lie back to back where the order turns. `transforms` is what the ratio would be if the transforms cost only the time
spent inside them: it hardly suffers from noise, but sees no effect on what runs after them. Peak memory is the high-
water mark of the resident set of one fresh child process each, plain and keyed. Inference is the network to its
logits; a training step is forward, losses, backward and optimiser. The exit status is 1 if a limit was missed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from common import PROTECTED, Workload, build_stock, counting, encryptions, time_pairs
from tables import add_option, spread, write_table
from timing import peak_memory, quartiles
from torch import nn
from tqdm import tqdm

from keyseg_mm import Point, SecretKey, Site, attach, detach, entries_at
from keyseg_mm.maps import CHANNEL_MAPS


@dataclass(frozen=True)
class Case:
    """A stock model, the batch it is measured on, and the largest ratios keyed/plain that are allowed at `stages`."""

    config: str
    size: tuple[int, int]
    limits: dict[str, float]


CASES = {
    'FCN-R50-D8': Case(
        'fcn/fcn_r50-d8_4xb2-40k_cityscapes-512x1024.py', (128, 256), {'inference': 1.01, 'training': 1.02}
    ),
    'SegFormer-B0': Case(
        'segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py', (512, 512), {'inference': 1.01, 'training': 1.02}
    ),
    'Fast-SCNN': Case(
        'fastscnn/fast_scnn_8xb4-160k_cityscapes-512x1024.py', (256, 512), {'inference': 1.03, 'training': 1.04}
    ),
}
# Of the host's configs that need no further package: the one with the most channels, which needs mmcv's compiled ops,
# and the one with the most weights.
LARGEST = (
    'san/san-vit-l14_coco-stuff164k-640x640.py',
    'beit/beit-large_upernet_8xb1-amp-160k_ade20k-640x640.py',
)
EVERYWHERE = {'inference': 1.10, 'training': 1.10}  # allowed at `linear`, of each model
DERIVE_LIMIT_MS = 100.0
LIMITED = 'ChannelPermutation'  # the other transforms are reported beside it
HELP_LIMIT_S = 0.3
COLUMNS = ('model', '', 'wall time', 'noise', 'transforms', 'limit', 'peak memory')


def limits_of(name: str, points: str) -> dict[str, float]:
    """The largest ratios that are allowed of a model, by mode."""
    return EVERYWHERE if points == 'linear' else CASES[name].limits


def warm_up(work: Workload, points: str) -> dict[str, Any]:
    """Run the keyed model a few times, and count what its encryptors do in the first and in the later passes."""
    protection = work.protect(points)
    counts = {}
    for name, passes in (('first', 1), ('later', 2)):
        with counting() as counted:
            for _ in range(passes):
                work.infer()
                work.train()
        counts[name] = dict(counted)
    return {'points': len(protection.encryptors), 'encryptions': encryptions(work.model), **counts}


def memory_child(name: str, kind: str, points: str, batch: int, size: tuple[int, int]) -> None:
    """In a process of its own: run a model and print the peaks after inference and after training, as JSON."""
    work = Workload.of(CASES[name].config, batch, size)
    if kind == 'keyed':
        work.protect(points)
    peaks = {}
    for mode, step in (('inference', work.infer), ('training', work.train)):
        step()
        step()
        peaks[mode] = peak_memory()
    print(json.dumps(peaks))


def memory_of(name: str, args: argparse.Namespace, size: tuple[int, int]) -> dict[str, dict[str, float]]:
    """Peaks in MiB by kind and mode."""
    peaks = {}
    for kind in ('plain', 'keyed'):
        command = [
            sys.executable,
            __file__,
            '--child',
            name,
            kind,
            f'--points={args.points}',
            f'--batch={args.batch}',
            '--size',
            *map(str, size),
        ]
        if args.threads:
            command += ['--threads', str(args.threads)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        peaks[kind] = json.loads(done.stdout.splitlines()[-1])
    return peaks


def time_derivation(config: str, repeats: int) -> dict[str, Any] | None:
    """Time to derive the tables of every layer of a model, at least all points of ``linear``.

    Returns:
        None where this stack lacks what the config needs.
    """
    try:
        model, _ = build_stock(config)
    except Exception as error:  # the host raises whatever it likes for ops and packages that are not there
        print(f'{config} cannot be built here: {type(error).__name__}: {error}', file=sys.stderr)
        return None
    layers = {n: m for n, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
    widths = {n: m.weight.shape[1] for n, m in layers.items() if getattr(m, 'groups', 1) == 1}
    sites = [Site(Point('in', n), width, 1, (), '') for n, width in widths.items()]
    found: dict[str, Any] = {'points': len(sites), 'channels': sum(widths.values()), 'ms': {}}
    for transform in CHANNEL_MAPS:
        taken = []
        for _ in tqdm(range(repeats), desc=transform, leave=False):
            detach(model)
            entries = entries_at(sites, transform)
            start = time.perf_counter()
            attach(model, SecretKey.generate(), sites, entries)
            taken.append(1e3 * (time.perf_counter() - start))
        found['ms'][transform] = quartiles(taken)
    return found


def time_help(repeats: int) -> dict[str, float]:
    """Seconds of ``keyseg --help`` in a process of its own, start to end."""
    script = shutil.which('keyseg', path=os.pathsep.join([str(Path(sys.executable).parent), os.environ['PATH']]))
    command = [script] if script else [sys.executable, '-c', 'import sys; from keyseg_mm.cli import main; main()']
    taken = []
    for _ in tqdm(range(repeats), desc='keyseg --help', leave=False):
        start = time.perf_counter()
        subprocess.run([*command, '--help'], stdout=subprocess.DEVNULL, check=True)
        taken.append(time.perf_counter() - start)
    return quartiles(taken)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All figures."""
    results: dict[str, Any] = {
        'torch': torch.__version__,
        'threads': torch.get_num_threads(),
        'cores': os.cpu_count(),
        'points': args.points,
        'help s': time_help(args.repeats),
        'models': {},
    }
    for name in args.models:
        size = tuple(args.size or CASES[name].size)
        work = Workload.of(CASES[name].config, args.batch, size)
        row: dict[str, Any] = {'batch': args.batch, 'size': size, 'hot path': warm_up(work, args.points)}
        row['inference'] = time_pairs(work.model, work.infer, args.rounds, f'{name} inference')
        row['training'] = time_pairs(work.model, work.train, max(args.rounds // 2, 2), f'{name} training')
        del work
        if name not in args.no_memory:
            row['peak MiB'] = memory_of(name, args, size)
        results['models'][name] = row
    results['derivation'] = {c: f for c in args.largest if (f := time_derivation(c, args.repeats)) is not None}
    return results


def misses(results: dict[str, Any]) -> list[str]:
    """What is over its limit."""
    checks = [('keyseg --help, s', results['help s']['median'], HELP_LIMIT_S)]
    for name, row in results['models'].items():
        limits = limits_of(name, results['points'])
        checks += [(f'{name} {mode}', row[mode]['wall']['median'], limit) for mode, limit in limits.items()]
        hot = row['hot path']
        for passes in ('first', 'later'):
            checks += [(f'{name}, tables {what} in {passes} passes', n, 0) for what, n in hot[passes].items()]
    for config, found in results['derivation'].items():
        checks.append((f'{config}, {LIMITED}, ms', found['ms'][LIMITED]['median'], DERIVE_LIMIT_MS))
    return [f'{what}: {value:.4g}, at most {limit}' for what, value, limit in checks if value > limit]


def cells(name: str, row: dict[str, Any], limits: dict[str, float]) -> Iterator[list[str]]:
    """One model's rows of the table."""
    title = f'{name}, {row["batch"]} of {"x".join(map(str, row["size"]))}'
    for mode, what in (('inference', 'inference'), ('training', 'training step')):
        took, memory = row[mode], ''
        noise = f'[{took["noise"]["q1"]:.3f}, {took["noise"]["q3"]:.3f}]'
        if 'peak MiB' in row:
            plain, keyed = (row['peak MiB'][kind][mode] for kind in ('plain', 'keyed'))
            memory = f'{keyed / plain:.3f}'
        own = f'{took["own"]["median"]:.3f}'
        yield [title, what, spread(took['wall'], 3), noise, own, f'{limits[mode]:.2f}', memory]
        title = ''


def report(results: dict[str, Any], table: Path | None) -> None:
    """Print the figures."""
    print(f'\n{results["threads"]} thread(s), {results["cores"]} cores, torch {results["torch"]}')
    models = results['models'].items()
    parts = (cells(name, row, limits_of(name, results['points'])) for name, row in models)
    write_table(table, COLUMNS, itertools.chain(*parts))
    for name, row in models:
        hot = row['hot path']
        for passes in ('first', 'later'):
            counts = ', '.join(f'{what} {n}' for what, n in hot[passes].items())
            print(f'{name}, {passes} passes over {hot["points"]} points: tables {counts}')
    for config, found in results['derivation'].items():
        print(f'all {found["points"]} points, {found["channels"]} channels, of {config}, derived in')
        for transform, ms in found['ms'].items():
            limit = f', limit {DERIVE_LIMIT_MS:g} ms' if transform == LIMITED else ''
            print(f'  {transform}: {ms["median"]:.1f} ms [{ms["q1"]:.1f}, {ms["q3"]:.1f}]{limit}')
    took = results['help s']
    print(f'keyseg --help: {took["median"]:.3f} s [{took["q1"]:.3f}, {took["q3"]:.3f}], limit {HELP_LIMIT_S} s')


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--models', nargs='+', choices=CASES, default=list(CASES), metavar='MODEL')
    parser.add_argument('--points', choices=PROTECTED, default='linear', help='of the keyed model (linear)')
    parser.add_argument('--rounds', type=int, default=24, help='pairs for inference, half as many for training')
    parser.add_argument('--repeats', type=int, default=9, help='repetitions of derivation and of --help')
    parser.add_argument('--batch', type=int, default=2, help='images; at least 2')
    parser.add_argument('--size', type=int, nargs=2, metavar=('HEIGHT', 'WIDTH'), help="instead of each model's own")
    parser.add_argument('--threads', type=int, help="instead of torch's own number")
    parser.add_argument('--json', type=Path, metavar='FILE', help='write all figures there')
    add_option(parser)
    parser.add_argument('--smoke', action='store_true', help='tiny and short: only see that it runs')
    parser.add_argument('--child', nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    args.largest, args.no_memory = LARGEST, ()
    if args.smoke:
        args.rounds, args.repeats, args.size = 2, 2, (64, 64)
        args.largest, args.no_memory = (CASES['Fast-SCNN'].config,), args.models[:-1]
    return args


def main() -> int:
    """Measure, print, and tell by the exit status whether every limit was kept."""
    args = parse()
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.child:
        memory_child(*args.child, args.points, args.batch, tuple(args.size))
        return 0
    results = measure(args)
    report(results, args.table)
    missed = results['missed'] = [] if args.smoke else misses(results)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + '\n')
    for line in missed:
        print(f'MISSED {line}')
    return int(bool(missed))


if __name__ == '__main__':
    sys.exit(main())
