#!/usr/bin/env python
"""Train a small model plain and protected, test it with the right key, without one and with wrong ones.

    python benchmarks/accuracy/run.py --data DATA --out OUT [--model fast-scnn segformer ...] [--layout cityscapes]

DATA holds cityscapes/ and ade/ADEChallengeData2016/, laid out as mmseg's data set configs expect. Finished steps are
kept in OUT and not run again. Prints a table and writes OUT/results.json. The paper's way: stages, permutation (or
what --points and --transform ask for), the same seed and schedule for both models, mmsegmentation's own train.py and
test.py.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
from pathlib import Path

from keyseg_mm import SecretKey, write_key_file

HERE = Path(__file__).resolve().parent
WRONG = ('random:1', 'random:2', 'random:3')
PAPER = ('stages', 'ChannelPermutation')  # points and transform
MODELS = ('fast-scnn', 'segformer', 'bisenetv2')
LAYOUTS = {'cityscapes': 'cityscapes', 'ade20k': 'ade/ADEChallengeData2016'}


def tool(name: str, arguments: list[str], work_dir: Path) -> None:
    """One of our tools in a process of its own, its output in work_dir/NAME.log."""
    work_dir.mkdir(parents=True, exist_ok=True)
    code = f'import sys; from keyseg_mm.cli import run_module; sys.exit(run_module({name!r}, sys.argv[1:]))'
    with (work_dir / f'{name}.log').open('w') as log:
        command = [sys.executable, '-c', code, *arguments, '--work-dir', str(work_dir)]
        if subprocess.run(command, stdout=log, stderr=subprocess.STDOUT).returncode:
            raise SystemExit(f'{name} failed; see {work_dir}/{name}.log')


def train(config: Path, options: list[str], work_dir: Path) -> Path:
    """The last checkpoint of a training run."""
    mark = work_dir / 'last_checkpoint'
    if not mark.exists():
        print(f'train {config.stem} into {work_dir}', flush=True)
        tool('train', [str(config), '--cfg-options', *options], work_dir)
    return Path(mark.read_text().strip())


def test(config: Path, checkpoint: Path, options: list[str], work_dir: Path) -> float:
    """mIoU of a checkpoint, in percent."""
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


def test_keys(
    config: Path, checkpoint: Path, options: list[str], key: str, folder: Path, place: str
) -> dict[str, float]:
    """mIoU with the right key, without one and with wrong ones; ``{}`` in the place stands for which."""
    row = {}
    for name, locator in [('right key', key), ('no key', 'none'), *((w, w) for w in WRONG)]:
        work_dir = folder / place.format(name.replace(' ', '-').replace(':', ''))
        row[name] = test(config, checkpoint, [*options, f'model.protection.key={locator}'], work_dir)
    return row


def measure(
    model: str, layout: str, seed: int, data: Path, out: Path, key: str, protection: tuple[str, str] = PAPER
) -> dict[str, float]:
    """All figures of one model, layout and seed, protected at points with a transform."""
    root = str(data / LAYOUTS[layout])
    options = [f'{part}_dataloader.dataset.data_root={root}' for part in ('train', 'val', 'test')]
    options.append(f'randomness.seed={seed}')
    plain_config, keyed_config = HERE / f'{model}_{layout}.py', HERE / f'keyed_{model}_{layout}.py'
    folder = out / f'{model}-{layout}-seed{seed}'
    plain = train(plain_config, options, folder / 'plain')
    suffix = suffix_of(protection)
    keyed_options = [*options, *keyed_as(*protection)]
    keyed = train(keyed_config, [*keyed_options, f'model.protection.key={key}'], folder / f'keyed{suffix}')
    row = {'floor': floor_of(plain_config, root), 'plain': test(plain_config, plain, options, folder / 'test-plain')}
    return {**row, **test_keys(keyed_config, keyed, keyed_options, key, folder, f'test-{{}}{suffix}')}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', type=Path, required=True)
    parser.add_argument('--out', type=Path, required=True)
    parser.add_argument('--model', nargs='+', choices=MODELS, default=list(MODELS))
    parser.add_argument('--layout', nargs='+', choices=LAYOUTS, default=list(LAYOUTS))
    parser.add_argument('--points', default=PAPER[0], help=f"of the protected model (the paper's, {PAPER[0]})")
    parser.add_argument('--transform', default=PAPER[1], help=f"of the protected model (the paper's, {PAPER[1]})")
    parser.add_argument('--seeds', nargs='+', type=int, default=[0])
    args = parser.parse_args()
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    key_file = out / 'accuracy.key'
    if not key_file.exists():
        write_key_file(key_file, SecretKey.generate())
    protection, results = (args.points, args.transform), {}
    for model, layout, seed in itertools.product(args.model, args.layout, args.seeds):
        if not (HERE / f'{model}_{layout}.py').exists():
            print(f'{model}: no config for {layout}')
            continue
        row = measure(model, layout, seed, args.data.resolve(), out, f'file:{key_file}', protection)
        name = f'{model}, {layout}, {", ".join(protection)}, seed {seed}'
        results[name] = row
        print(f'{name}: ' + ', '.join(f'{k} {v:.2f}' for k, v in row.items()), flush=True)
    (out / 'results.json').write_text(json.dumps(results, indent=1) + '\n')


if __name__ == '__main__':
    main()
