#!/usr/bin/env python
"""Train a stock detector and a stock classifier, plain and protected, and test them with the key and without.

    python benchmarks/others/run.py --out OUT [--only detector] [--iterations 300] [--locked] [--table FILE]

By the own tools of mmdet and mmpretrain, on coloured squares that are made on the spot; what is not installed is left
out, and said. Prints a table and writes OUT/results.json. Finished steps are kept in OUT, and not run again; so
are the figures of the other one, which may take another environment.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config
from shapes import COLOURS, SIDE, write_coco, write_folders

from keyseg_mm import SecretKey, write_key_file

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))  # where all benchmarks' tables are
from tables import add_option, write_table  # noqa: E402

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
BASE = dict(
    param_scheduler=[],
    val_cfg=None,
    val_dataloader=None,
    val_evaluator=None,
    randomness=dict(seed=0, deterministic=True),
    model_wrapper_cfg=None,
)


@dataclass(frozen=True)
class Task:
    """A model of another of the host's packages.

    Attributes:
        package: that has it.
        config: the protected one, below ``configs/``.
        figure: what its test prints, the figure in brackets.
        unit: what that is.
        chance: what a model gives that has learnt nothing, in the same units.
    """

    package: str
    config: str
    figure: str
    unit: str
    chance: float

    def cell(self, figure: float | None) -> str:
        """A figure, as the table has it."""
        return '' if figure is None else f'{figure:.3f}' if self.unit == 'mAP' else f'{figure:.1f}'


TASKS = {
    'detector': Task(
        'mmdet', 'mmdet/retinanet/keyed_retinanet_r18_fpn_1x_coco.py', r'coco/bbox_mAP: ([-.\d]+)', 'mAP', 0.0
    ),
    'classifier': Task(
        'mmpretrain',
        'mmpretrain/resnet/keyed_resnet18_8xb32_in1k.py',
        r'accuracy/top1: ([.\d]+)',
        '% right',
        100 / len(COLOURS),
    ),
}
NOTHING = 'The testing results of the whole dataset is empty'  # mmdet, where no box has a score that counts
#: How a protected model is tested, and with which locator. Without its key a sealed file is noise, and gives no number;
#: what is in the open has its maps alone.
WAYS = {'with the key': '', 'opened': '', 'without the key': 'none', 'with a wrong key': 'random:1'}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, required=True)
    parser.add_argument('--only', choices=TASKS)
    parser.add_argument('--iterations', type=int, default=300)
    parser.add_argument('--locked', action='store_true', help='lock the plain one, and train none with the key')
    add_option(parser)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    key = args.out / 'key'
    if not key.exists():
        write_key_file(key, SecretKey(bytes(range(32))))
    figures = args.out / 'results.json'
    results = json.loads(figures.read_text()) if figures.exists() else {}
    for name, task in TASKS.items():
        if args.only in (None, name):
            try:
                importlib.import_module(f'{task.package}.models')
            except Exception as error:
                print(f'{name}: left out, since {task.package} is not here ({type(error).__name__}: {error})')
                continue
            results[name] = run(name, task, args.out / name, f'file:{key}', args.iterations, args.locked)
    figures.write_text(json.dumps(results, indent=1))
    made = [name for name in TASKS if name in results]
    ways = dict.fromkeys(way for name in made for way in results[name])
    rows = [[way, *(TASKS[name].cell(results[name].get(way)) for name in made)] for way in ways]
    columns = ['', *(f'{name}, {TASKS[name].unit}' for name in made)]
    write_table(
        args.table, columns, [*rows, ['chance', *(TASKS[n].cell(TASKS[n].chance) for n in made)]], 'lrr'[: len(columns)]
    )


def run(name: str, task: Task, out: Path, key: str, iterations: int, locked: bool) -> dict[str, float]:
    """The figures of one model, by the way in which it was made and run."""
    data = out / 'data'
    if not data.exists():
        write = write_coco if name == 'detector' else write_folders
        write(data / 'train', 240, 1)
        write(data / 'test', 60, 2)
    protected = Config.fromfile(str(CONFIGS / task.config), import_custom_modules=False)
    protected.merge_from_dict(BASE)
    small = _small_detector if name == 'detector' else _small_classifier
    small(protected, data, iterations)
    plain = Config(protected.to_dict())
    plain.custom_hooks, plain.model.type = [], plain.model.pop('of')
    plain.model.pop('protection')
    # what a training wrote is refused by the host's own reader with this torch, which this mends
    plain.custom_imports = dict(imports=['keyseg_mm.mm'], allow_failed_imports=False)
    protected.model.protection.key = key
    for kind, cfg in (('plain', plain), ('protected', protected)):
        cfg.dump(str(out / f'{kind}.py'))
    file = _train(task, out / 'plain.py', out / 'plain', iterations)
    found = {'plain': _test(task, out / 'plain.py', file, out / 'tested plain', [])}
    files = {
        'locked': (_lock(out / 'plain.py', file, out / 'locked.pth', key), 'checkpoint'),
        'in the open': (_lock(out / 'plain.py', file, out / 'open.pth', key, '--no-seal'), 'checkpoint'),
    }
    if not locked:
        files['trained'] = (_train(task, out / 'protected.py', out / 'protected', iterations), 'linear')
    for made, (path, points) in files.items():
        for way, locator in WAYS.items():
            options = [f'model.protection.key={locator or key}', f'model.protection.points={points}']
            options += ['model.protection.runtime=plain'] if way == 'opened' else []
            where = out / f'tested {made}, {way}'
            found[f'{made}, {way}'] = _test(task, out / 'protected.py', path, where, options)
    return found


def _lock(config: Path, file: Path, out: Path, key: str, *options: str) -> Path:
    if not out.exists():
        lock = ['lock', str(file), '--config', str(config), '--key', key, '--out', str(out), *options]
        code = 'import sys; from keyseg_mm.cli import main; sys.exit(main(sys.argv[1:]))'
        subprocess.run([sys.executable, '-c', code, *lock], check=True)
    return out


def _small_detector(cfg: Any, data: Path, iterations: int) -> None:
    # a quarter as wide, and trained from the start
    cfg.model.backbone.update(init_cfg=None, frozen_stages=-1, norm_eval=False, base_channels=16)
    cfg.model.neck.update(in_channels=[16, 32, 64, 128], out_channels=64)
    cfg.model.bbox_head.update(num_classes=len(COLOURS), in_channels=64, feat_channels=64, stacked_convs=2)
    cfg.optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='Adam', lr=1e-3), clip_grad=dict(max_norm=10))
    load, boxes = dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True)
    resize = dict(type='Resize', scale=(SIDE, SIDE), keep_ratio=True)
    keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
    pipeline = [load, boxes, resize, dict(type='PackDetInputs', meta_keys=keys)]
    for part in ('train', 'test'):
        cfg[f'{part}_dataloader'] = dict(
            batch_size=4 if part == 'train' else 1,
            num_workers=0,
            sampler=dict(type='InfiniteSampler' if part == 'train' else 'DefaultSampler', shuffle=part == 'train'),
            dataset=dict(
                type='CocoDataset',
                ann_file=str(data / f'{part}.json'),
                data_prefix=dict(img=str(data / part)),
                metainfo=dict(classes=tuple(COLOURS)),
                test_mode=part == 'test',
                pipeline=pipeline,
            ),
        )
    cfg.test_evaluator = dict(type='CocoMetric', ann_file=str(data / 'test.json'), metric='bbox')
    _short(cfg, iterations)


def _small_classifier(cfg: Any, data: Path, iterations: int) -> None:
    cfg.model.head.update(num_classes=len(COLOURS), topk=(1,))
    cfg.optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.02, momentum=0.9, weight_decay=1e-4))
    cfg.data_preprocessor.num_classes = len(COLOURS)
    pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
    for part in ('train', 'test'):
        cfg[f'{part}_dataloader'] = dict(
            batch_size=16,
            num_workers=0,
            persistent_workers=False,  # mmpretrain's tools would have them
            sampler=dict(type='InfiniteSampler' if part == 'train' else 'DefaultSampler', shuffle=part == 'train'),
            dataset=dict(type='CustomDataset', data_root=str(data / part), pipeline=pipeline),
        )
    cfg.test_evaluator = dict(type='Accuracy', topk=(1,))
    _short(cfg, iterations)


def _short(cfg: Any, iterations: int) -> None:
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=iterations, val_interval=10**9)
    cfg.default_hooks.checkpoint = dict(type='CheckpointHook', by_epoch=False, interval=iterations)
    cfg.default_hooks.logger = dict(type='LoggerHook', interval=20, log_metric_by_epoch=False)
    cfg.log_processor = dict(type='LogProcessor', window_size=20, by_epoch=False)


def _train(task: Task, config: Path, work_dir: Path, iterations: int) -> Path:
    file = work_dir / f'iter_{iterations}.pth'
    if not file.exists():
        _tool(task, 'train', [str(config)], work_dir)
    return file


def _test(task: Task, config: Path, file: Path, work_dir: Path, options: list[str]) -> float:
    said = work_dir / 'test.log'
    if not said.exists():
        extra = ['--cfg-options', *options] if options else []
        _tool(task, 'test', [str(config), str(file), *extra], work_dir)
    text = said.read_text()
    if NOTHING in text:
        return 0.0
    return float(re.findall(task.figure, text)[-1])


def _tool(task: Task, name: str, arguments: list[str], work_dir: Path) -> None:
    """One of the package's own tools, as it is, in a process of its own."""
    package: Any = importlib.import_module(task.package)
    tool = Path(package.__file__).parent / '.mim' / 'tools' / f'{name}.py'
    work_dir.mkdir(parents=True, exist_ok=True)
    log = work_dir / f'{name}.log'
    with log.with_suffix('.part').open('w') as file:
        done = subprocess.run(
            [sys.executable, str(tool), *arguments, '--work-dir', str(work_dir)], stdout=file, stderr=subprocess.STDOUT
        )
    if done.returncode:
        raise SystemExit(f'{task.package}: {name} failed; see {log.with_suffix(".part")}')
    log.with_suffix('.part').rename(log)


if __name__ == '__main__':
    main()
