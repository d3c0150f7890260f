#!/usr/bin/env python
"""Is training behind the key the plain training? Compares the losses of both, iteration by iteration.

    python benchmarks/accuracy/law.py --data DATA --out OUT [--model fast-scnn ...] [--case adamw ...]

DATA holds cityscapes/, as for run.py. Each model is trained for 50 iterations by mmsegmentation's own train.py, plain
and with the key: at `stages`, at `linear` with signs, and one opened in memory (runtime='plain'). In float64, so that
the order of sums makes no difference: what differs is not the same training. By AdamW; and one model, at `linear`, by
SGD with momentum, with accumulated gradients, with EMA, resumed in the middle, and in two processes (gloo). For each,
the largest relative difference of a loss, and the difference of the mIoU at the end, which is EMA's where there is one.
In bfloat16 the host trains on a GPU alone. Finished trainings are kept in OUT. Writes OUT/law.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from run import DEFAULT, HERE, LAYOUTS, NAMES, PAPER, key_in, keyed_as, roots_of, tool
from tables import add_option, write_table

WAYS = {
    'stages': keyed_as(*PAPER),
    'linear': keyed_as(*DEFAULT),
    'opened': [*keyed_as(*DEFAULT), 'model.protection.runtime=plain'],
}
FEW_WAYS = ['stages', 'linear']
ITERATIONS = 50
SGD = ('optim_wrapper.optimizer._delete_=True', 'optim_wrapper.optimizer.type=SGD', 'optim_wrapper.optimizer.lr=0.02')
CASES: dict[str, tuple[str, ...]] = {
    'adamw': (),
    'sgd': (*SGD, 'optim_wrapper.optimizer.momentum=0.9', 'optim_wrapper.optimizer.weight_decay=0.0005'),
    'accumulated': ('optim_wrapper.accumulative_counts=2',),
    'ema': (),
    'resumed': (),
    'two processes': (
        *('model_wrapper_cfg.type=MMDistributedDataParallel', 'model_wrapper_cfg.device_ids=None'),
        'env_cfg.dist_cfg.backend=gloo',
    ),
}
TITLES = {
    'adamw': 'AdamW',
    'sgd': 'SGD with momentum',
    'accumulated': 'AdamW, accumulated gradients',
    'ema': 'AdamW, EMA',
    'resumed': 'AdamW, resumed in the middle',
    'two processes': 'AdamW, two processes',
}
COLUMNS = {'stages': '`stages`, permutation', 'linear': '`linear`, signs', 'opened': 'the same, opened'}
IN_ALL_CASES = 'fcn-r18'  # the others in the first: a CPU has no time for more
QUIET = (
    'default_hooks.logger.interval=1',
    'log_processor.window_size=1',
    f'default_hooks.checkpoint.interval={ITERATIONS // 2}',
    f'train_cfg.val_interval={ITERATIONS * 20}',
)


class Course(NamedTuple):
    """Of a training: the loss of each iteration, and the mIoU at the end, in percent."""

    losses: list[float]
    miou: float

    def gap(self, other: Course) -> dict[str, float]:
        """The largest relative difference of a loss, and the difference of the mIoU."""
        if len(self.losses) != len(other.losses) or not self.losses:
            raise SystemExit(f'{len(self.losses)} and {len(other.losses)} iterations cannot be compared')
        worst = max(abs(a - b) / abs(a) for a, b in zip(self.losses, other.losses))
        return {'loss': worst, 'mIoU': abs(self.miou - other.miou)}


def config_of(model: str, case: str, keyed: bool, out: Path) -> Path:
    """A model's config as it is trained here."""
    bases = [f'{HERE}/{model}_cityscapes.py', *([f'{HERE}/in_the_open.py'] if keyed else [])]
    lines = [f'_base_ = {bases}']
    if keyed:
        lines += ["model = dict(type='keyseg_mm.Keyed', of='EncoderDecoder', protection={{_base_.protection}})"]
    if case == 'ema':
        lines += ["custom_hooks = [dict(type='EMAHook', momentum=0.02)]"]
    lines += ["custom_imports = dict(imports=['float64'])"]
    path = out / f'{"keyed" if keyed else "plain"}-{model}-{case.replace(" ", "-")}.py'
    path.write_text('\n'.join(lines) + '\n')
    return path


def course_of(config: Path, options: list[str], work: Path, case: str) -> Course:
    """How a training went, which is run unless it was."""
    if not (work / 'done').exists():
        whole, half = (f'train_cfg.max_iters={count}' for count in (ITERATIONS, ITERATIONS // 2))
        for run in [[half], [whole, 'resume=True']] if case == 'resumed' else [[whole]]:
            arguments = [str(config), '--cfg-options', *options, *run]
            tool('train', arguments, work, processes=2 if case == 'two processes' else 1)
        (work / 'done').touch()
    losses, mious = {}, []
    for path in sorted(work.glob('*/vis_data/*.json')):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        losses.update((int(row['step']), float(row['loss'])) for row in rows if 'loss' in row)
        mious += [float(row['mIoU']) for row in rows if 'mIoU' in row]
    return Course([losses[step] for step in sorted(losses)], mious[-1])


def small(args: argparse.Namespace) -> list[str]:
    """Options of few and small pictures, so that an iteration takes a CPU a fraction of a second."""
    size = f'({args.crop[0]},{args.crop[1]})'
    crops = [f'model.data_preprocessor.size={size}', f'train_dataloader.dataset.pipeline.3.crop_size={size}']
    return [*crops, f'train_dataloader.batch_size={args.batch}', 'val_dataloader.dataset.indices=1']


def row_of(model: str, case: str, ways: list[str], args: argparse.Namespace, out: Path) -> dict[str, dict[str, float]]:
    """How far each protected training is from the plain one."""
    plain_config, keyed_config = (config_of(model, case, keyed, out) for keyed in (False, True))
    roots = roots_of(args.data.resolve() / LAYOUTS['cityscapes'])
    options = [*roots, *small(args), *QUIET, *CASES[case], 'randomness.seed=0']
    folder, found = out / model, {}
    plain = course_of(plain_config, options, folder / f'{case}-plain', case)
    for way in ways:
        keyed_options = [*options, *WAYS[way], f'model.protection.key={key_in(out)}']
        found[way] = plain.gap(course_of(keyed_config, keyed_options, folder / f'{case}-{way}', case))
    return found


def rows_of(args: argparse.Namespace) -> Iterator[tuple[str, str, list[str]]]:
    """Model, case and ways, of what is asked for."""
    for case in args.case:
        for model in args.model if case == 'adamw' else [IN_ALL_CASES]:
            yield model, case, ['linear'] if case != 'adamw' else list(WAYS) if model == IN_ALL_CASES else FEW_WAYS


def table(results: dict[str, dict[str, dict[str, float]]]) -> Iterator[list[str]]:
    """The largest relative differences of a loss: heads, and a row for each case."""
    ways = [way for way in COLUMNS if any(way in row for row in results.values())]
    yield ['model, training', *(COLUMNS[way] for way in ways)]
    for name, row in results.items():
        model, case = name.split(', ')
        found = [row[way]['loss'] if way in row else None for way in ways]
        cells = ['' if loss is None else f'{loss:.1e}' if loss else '0' for loss in found]
        yield [f'{NAMES[model]}, {TITLES[case]}', *cells]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', type=Path, required=True)
    parser.add_argument('--out', type=Path, required=True)
    parser.add_argument('--model', nargs='+', choices=NAMES, default=list(NAMES))
    parser.add_argument('--batch', type=int, default=2)
    parser.add_argument('--crop', type=int, nargs=2, default=(48, 64), metavar=('HEIGHT', 'WIDTH'))
    parser.add_argument('--case', nargs='+', choices=CASES, default=list(CASES))
    add_option(parser)
    args = parser.parse_args()
    out, results = args.out.resolve(), {}
    key_in(out)
    for model, case, ways in rows_of(args):
        row = results[f'{model}, {case}'] = row_of(model, case, ways, args, out)
        words = (f'{way} {found["loss"]:.1e} (mIoU {found["mIoU"]:.2f})' for way, found in row.items())
        print(f'{model}, {case}: ' + ', '.join(words), flush=True)
    (out / 'law.json').write_text(json.dumps(results, indent=1) + '\n')
    columns, *rows = table(results)
    write_table(args.table, columns, rows, 'l' + 'r' * (len(columns) - 1))


if __name__ == '__main__':
    main()
