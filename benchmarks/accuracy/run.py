#!/usr/bin/env python
"""Train small models plain and protected, and test them with the right key, without one and with ten wrong ones.

    python benchmarks/accuracy/run.py --data DATA --out OUT [--model fast-scnn segformer ...] [--layout cityscapes]

DATA holds cityscapes/ and ade/ADEChallengeData2016/, laid out as mmseg's data set configs expect. Finished steps are
kept in OUT and not run again. Both models of a seed have the same schedule and mmsegmentation's own train.py; they
are scored in one process, on every second photo, strangers on every tenth. Prints a row for each pair, and for each
model and layout the mean difference over the seeds with its standard error; the table at the end. Writes
OUT/results.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import socket
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from keyseg_mm import SecretKey, write_key_file

HERE = Path(__file__).resolve().parent
sys.path.insert(1, str(HERE.parent))  # where all benchmarks' tables are
from tables import add_option, write_table  # noqa: E402

WRONG = ('random:1', 'random:2', 'random:3')
PAPER = ('stages', 'ChannelPermutation')  # points and transform
DEFAULT = ('linear', 'SignedChannelPermutation')
MODELS = ('fast-scnn', 'segformer', 'bisenetv2')
LAYOUTS = {'cityscapes': 'cityscapes', 'ade20k': 'ade/ADEChallengeData2016'}
NAMES = {
    'fast-scnn': 'Fast-SCNN',
    'bisenetv2': 'BiSeNetV2',
    'fcn-r18': 'FCN-ResNet-18',
    'segformer': 'SegFormer',
    'swin': 'Swin, UPerNet',
    'setr': 'SETR',
}
TITLES = {'cityscapes': 'Cityscapes', 'ade20k': 'ADE20K layout'}
WORDS = {'ChannelPermutation': 'permutation', 'SignedChannelPermutation': 'signs', 'ChannelRotation': 'rotation'}
PARTS = ('train', 'val', 'test')
COLUMNS = ('', 'plain', 'right key', 'difference', 'no key (of the floor)', 'ten wrong keys (most, of the floor)')


def tool(name: str, arguments: list[str], work_dir: Path, processes: int = 1) -> None:
    """One of our tools, in a process of its own or several, its output in work_dir/NAME.log."""
    work_dir.mkdir(parents=True, exist_ok=True)
    command = [str(HERE.parents[1] / 'tools' / f'{name}.py'), *arguments, '--work-dir', str(work_dir)]
    if processes > 1:
        with socket.socket() as free:
            free.bind(('127.0.0.1', 0))
            port = free.getsockname()[1]
        start = ['-m', 'torch.distributed.run', f'--nproc_per_node={processes}', f'--master_port={port}']
        command = [*start, *command, '--launcher', 'pytorch']
    paths = os.pathsep.join([str(HERE), *filter(None, [os.environ.get('PYTHONPATH')])])  # for configs that import
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': paths}
    with (work_dir / f'{name}.log').open('w') as log:
        done = subprocess.run([sys.executable, *command], stdout=log, stderr=subprocess.STDOUT, env=environment)
        if done.returncode:
            raise SystemExit(f'{name} failed; see {work_dir}/{name}.log')


def train(config: Path, options: list[str], work_dir: Path) -> Path:
    """The last checkpoint of a training run."""
    mark = work_dir / 'last_checkpoint'
    if not mark.exists():
        print(f'train {config.stem} into {work_dir}', flush=True)
        tool('train', [str(config), '--cfg-options', *options], work_dir)
    return Path(mark.read_text().strip())


def test(config: Path, checkpoint: Path, options: list[str], work_dir: Path) -> float:
    """mIoU of a checkpoint, in percent, by mmsegmentation's own test.py."""
    found = sorted(work_dir.glob('*/*.json'))
    if not found:
        tool('test', [str(config), str(checkpoint), '--cfg-options', *options], work_dir)
        found = sorted(work_dir.glob('*/*.json'))
    return float(json.loads(found[-1].read_text())['mIoU'])


def floor_of(config: Path, root: str) -> float:
    """The constant-prediction floor of a config's test data."""
    from mmengine.config import Config
    from mmengine.registry import init_default_scope

    from keyseg_mm.mm.floor import floor_of_dataset

    cfg = Config.fromfile(str(config))
    init_default_scope('mmseg')
    cfg.test_dataloader.dataset.data_root = root
    return floor_of_dataset(cfg.test_dataloader.dataset, cfg.model.decode_head.num_classes)


def keyed_as(points: str, transform: str) -> list[str]:
    """Options of a keyed config."""
    return [f'model.protection.points={points}', f'model.protection.transform={transform}']


def suffix_of(protection: tuple[str, str]) -> str:
    """Ends the names of what is done with a protection other than the paper's."""
    return '' if protection == PAPER else '-' + '-'.join(protection)


def key_in(out: Path) -> str:
    """The locator of a key file in a folder, which is made where there is none."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / 'accuracy.key'
    if not path.exists():
        write_key_file(path, SecretKey.generate())
    return f'file:{path}'


def roots_of(root: Path) -> list[str]:
    """Options that name the folder of the data set."""
    return [f'{part}_dataloader.dataset.data_root={root}' for part in PARTS]


def schedule_of(iterations: int, batch: int, crop: Sequence[int]) -> list[str]:
    """Options of a training of so many iterations on such crops, which is scored after it, and not by itself."""
    each = ('train_cfg.max_iters', 'train_cfg.val_interval', 'default_hooks.checkpoint.interval')
    found = [f'{name}={iterations}' for name in (*each, 'param_scheduler.1.end')]
    size = f'({crop[0]},{crop[1]})'
    found += [f'model.data_preprocessor.size={size}', f'train_dataloader.dataset.pipeline.3.crop_size={size}']
    return [*found, f'train_dataloader.batch_size={batch}', 'val_dataloader.dataset.indices=1']


def measure(
    model: str, layout: str, seed: int, data: Path, out: Path, schedule: list[str], protection: tuple[str, str]
) -> dict[str, float]:
    """All figures of one model, layout and seed, protected at points with a transform."""
    from score import score

    roots, key = roots_of(data / LAYOUTS[layout]), key_in(out)
    options = [*roots, *schedule, f'randomness.seed={seed}']
    plain_config, keyed_config = HERE / f'{model}_{layout}.py', HERE / f'keyed_{model}_{layout}.py'
    folder, name = out / f'{model}-{layout}-seed{seed}', f'keyed{suffix_of(protection)}'
    plain = train(plain_config, options, folder / 'plain')
    row = score(plain_config, plain, roots, folder / 'scores-plain')
    keyed = train(keyed_config, [*options, *keyed_as(*protection), f'model.protection.key={key}'], folder / name)
    return {**row, **score(keyed_config, keyed, [*roots, *keyed_as(*protection)], folder / f'scores-{name}', key)}


def summary(rows: list[dict[str, float]]) -> dict[str, float]:
    """The mean difference of protected from plain with its standard error, and the most that strangers get."""
    gaps = [row['right key'] - row['plain'] for row in rows]
    error = statistics.stdev(gaps) / len(gaps) ** 0.5 if len(gaps) > 1 else float('nan')
    most = [max(v for k, v in row.items() if k.startswith('wrong')) / row['floor there'] for row in rows]
    none = [row['no key'] / row['floor there'] for row in rows]
    found = {'difference': statistics.mean(gaps), 'standard error': error}
    return {**found, 'no key, of the floor': max(none), 'a wrong key, of the floor': max(most)}


def cells(title: str, row: dict[str, float]) -> list[str]:
    """A pair in the table."""
    plain, key, none, floor = (row[name] for name in ('plain', 'right key', 'no key', 'floor there'))
    wrong = [value for name, value in row.items() if name.startswith('wrong')]
    strangers = [f'{none:.2f} ({none / floor:.2f})', f'{min(wrong):.2f} to {max(wrong):.2f} ({max(wrong) / floor:.2f})']
    return [title, f'{plain:.2f}', f'{key:.2f}', f'{key - plain:+.2f}', *strangers]


def table(results: dict[str, dict[str, float]]) -> Iterator[list[str]]:
    """Rows of pairs and of means; the model is named where there are several."""
    models = {name.split(', ')[0] for name in results}
    for name, row in results.items():
        model, layout, *_, seed = name.split(', ')
        title = TITLES[layout] if len(models) == 1 else f'{model}, {TITLES[layout]}'
        if 'difference' in row:
            mean = f'**{row["difference"]:+.2f} ± {row["standard error"]:.2f}**'
            yield [f'**{title}: mean, with its standard error**', '', '', mean, '', '']
        else:
            yield cells(f'{title}, {seed}', row)


def shown(row: dict[str, float]) -> str:
    """A row, for people."""
    return ', '.join(f'{name} {value:.2f}' for name, value in row.items())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', type=Path, required=True)
    parser.add_argument('--out', type=Path, required=True)
    parser.add_argument('--model', nargs='+', choices=MODELS, default=list(MODELS))
    parser.add_argument('--layout', nargs='+', choices=LAYOUTS, default=list(LAYOUTS))
    parser.add_argument('--points', default=DEFAULT[0], help=f'of the protected model (the default, {DEFAULT[0]})')
    parser.add_argument('--transform', default=DEFAULT[1], help=f'of the protected model (the default, {DEFAULT[1]})')
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    parser.add_argument('--iterations', type=int, default=1000)
    parser.add_argument('--batch', type=int, default=8)
    parser.add_argument('--crop', type=int, nargs=2, default=(192, 256), metavar=('HEIGHT', 'WIDTH'))
    add_option(parser)
    args = parser.parse_args()
    data, out, results = args.data.resolve(), args.out.resolve(), {}
    protection, schedule = (args.points, args.transform), schedule_of(args.iterations, args.batch, args.crop)
    for model, layout in itertools.product(args.model, args.layout):
        if not (HERE / f'{model}_{layout}.py').exists():
            print(f'{model}: no config for {layout}')
            continue
        name = f'{model}, {layout}, {", ".join(protection)}'
        for seed in args.seeds:
            row = measure(model, layout, seed, data, out, schedule, protection)
            results[f'{name}, seed {seed}'] = row
            print(f'{name}, seed {seed}: {shown(row)}', flush=True)
        results[name] = summary([row for run, row in results.items() if run.startswith(f'{name}, seed')])
        print(f'{name}: {shown(results[name])}', flush=True)
        (out / 'results.json').write_text(json.dumps(results, indent=1) + '\n')
    write_table(args.table, COLUMNS, table(results), 'lrrrrr')


if __name__ == '__main__':
    main()
