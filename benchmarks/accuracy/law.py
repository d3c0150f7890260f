#!/usr/bin/env python
"""Is training behind the key the plain training? Compares the losses of both, iteration by iteration.

    python benchmarks/accuracy/law.py --data DATA --out OUT [--model fast-scnn ...] [--case adamw ...]

DATA holds cityscapes/, as for run.py. Each model is trained for 50 iterations by mmsegmentation's own train.py, plain
and with the key: at `stages`, at `linear` with signs, and at `linear` with signs opened in memory (runtime='plain').
The cases: AdamW; SGD with momentum; accumulated gradients; EMA; resumed in the middle; two processes (gloo);
bfloat16. For each, the largest relative difference of a loss; and that of two plain trainings on one thread and on
two, which differ in nothing but the rounding of sums. Finished trainings are kept in OUT.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

from run import HERE

from keyseg_mm import SecretKey, write_key_file

MODELS = ('fast-scnn', 'bisenetv2', 'fcn-r18', 'segformer', 'swin', 'setr')
LINEAR = ('model.protection.points=linear', 'model.protection.transform=SignedChannelPermutation')
WAYS = {
    'stages': ('model.protection.points=stages',),
    'linear': LINEAR,
    'opened': (*LINEAR, 'model.protection.runtime=plain'),
}
ITERATIONS = 50
SGD = ('optim_wrapper.optimizer._delete_=True', 'optim_wrapper.optimizer.type=SGD', 'optim_wrapper.optimizer.lr=0.02')
CASES: dict[str, tuple[str, ...]] = {
    'adamw': (),
    'sgd': (*SGD, 'optim_wrapper.optimizer.momentum=0.9', 'optim_wrapper.optimizer.weight_decay=0.0005'),
    'accumulated': ('optim_wrapper.accumulative_counts=2',),
    'ema': ("custom_hooks=[{'type':'EMAHook','momentum':0.02}]",),
    'resumed': (),
    'two processes': ('model_wrapper_cfg.type=MMDistributedDataParallel',),
    'bfloat16': ('optim_wrapper.type=AmpOptimWrapper', 'optim_wrapper.dtype=bfloat16'),
}
# small and few, so that an iteration takes a CPU a fraction of a second
SIZE = '(96,128)'
SMALL = (
    f'model.data_preprocessor.size={SIZE}',
    f'train_dataloader.dataset.pipeline.3.crop_size={SIZE}',
    'train_dataloader.batch_size=4',
)
QUIET = (
    'default_hooks.logger.interval=1',
    'log_processor.window_size=1',
    f'default_hooks.checkpoint.interval={ITERATIONS // 2}',
    f'train_cfg.val_interval={ITERATIONS * 20}',
)
CODE = 'import sys; from keyseg_mm.cli import run_module; sys.exit(run_module("train", sys.argv[1:]))\n'


def keyed_config_of(model: str, out: Path) -> Path:
    """The protected version of a model's config."""
    path = out / f'{model}.py'
    path.write_text(
        f"_base_ = ['{HERE}/{model}_cityscapes.py']\n"
        f"model = dict(type='keyseg_mm.Keyed', of='EncoderDecoder', protection=dict(key='file:{out}/law.key'))\n"
    )
    return path


def train(config: Path, options: list[str], work: Path, processes: int, threads: int) -> None:
    """A training by mmsegmentation's own tool, in one process or several."""
    work.mkdir(parents=True, exist_ok=True)
    (work / 'tool.py').write_text(CODE)
    arguments = [str(config), '--work-dir', str(work)]
    command = [sys.executable, str(work / 'tool.py'), *arguments]
    if processes > 1:
        with socket.socket() as free:
            free.bind(('127.0.0.1', 0))
            port = free.getsockname()[1]
        start = ['-m', 'torch.distributed.run', f'--nproc_per_node={processes}', f'--master_port={port}']
        command = [sys.executable, *start, str(work / 'tool.py'), *arguments, '--launcher', 'pytorch']
    environment = {**os.environ, 'OMP_NUM_THREADS': str(threads)}
    with (work / 'train.log').open('w') as log:
        whole = [*command, '--cfg-options', *options]
        if subprocess.run(whole, stdout=log, stderr=subprocess.STDOUT, env=environment).returncode:
            raise SystemExit(f'a training failed; see {work}/train.log')


def losses_of(config: Path, options: list[str], work: Path, case: str, threads: int = 2) -> list[float]:
    """The loss of each iteration, of a training that is run unless it was."""
    processes = 2 if case == 'two processes' else 1
    if not (work / 'done').exists():
        whole, half = (f'train_cfg.max_iters={count}' for count in (ITERATIONS, ITERATIONS // 2))
        if case == 'resumed':
            train(config, [*options, half], work, processes, threads)
            options = [*options, 'resume=True']
        train(config, [*options, whole], work, processes, threads)
        (work / 'done').touch()
    found: dict[int, float] = {}
    for path in sorted(work.glob('*/vis_data/*.json')):
        rows = [json.loads(line) for line in path.read_text().splitlines() if '"loss"' in line]
        found.update((int(row['step']), float(row['loss'])) for row in rows)
    return [found[step] for step in sorted(found)]


def difference(one: list[float], two: list[float]) -> float:
    """The largest relative difference of two runs' losses."""
    if len(one) != len(two) or not one:
        raise SystemExit(f'{len(one)} and {len(two)} iterations cannot be compared')
    return max(abs(a - b) / abs(a) for a, b in zip(one, two))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', type=Path, required=True)
    parser.add_argument('--out', type=Path, required=True)
    parser.add_argument('--model', nargs='+', choices=MODELS, default=list(MODELS))
    parser.add_argument('--case', nargs='+', choices=CASES, default=list(CASES))
    parser.add_argument('--way', nargs='+', choices=WAYS, default=list(WAYS))
    args = parser.parse_args()
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    if not (out / 'law.key').exists():
        write_key_file(out / 'law.key', SecretKey.generate())
    data = [
        f'{part}_dataloader.dataset.data_root={args.data.resolve()}/cityscapes' for part in ('train', 'val', 'test')
    ]
    for model, case in itertools.product(args.model, args.case):
        configs, folder = (HERE / f'{model}_cityscapes.py', keyed_config_of(model, out)), out / model
        options = [*data, *SMALL, *QUIET, *CASES[case], 'randomness.seed=0']
        plain = losses_of(configs[0], options, folder / f'{case}-plain', case)
        row = {}
        for way in args.way:
            keyed = losses_of(configs[1], [*options, *WAYS[way]], folder / f'{case}-{way}', case)
            row[way] = difference(plain, keyed)
        row['plain on one thread'] = difference(
            plain, losses_of(configs[0], options, folder / f'{case}-again', case, 1)
        )
        print(f'{model}, {case}: ' + ', '.join(f'{k} {v:.1e}' for k, v in row.items()), flush=True)


if __name__ == '__main__':
    main()
