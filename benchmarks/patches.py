"""mIoU of a small vision transformer on encrypted images: trained plain, locked, and tested with and without its key.

    python benchmarks/patches.py --out OUT [--iterations 200]

Makes street scenes, trains a small ViT with SETR's head on them for a minute, locks its patch embedding, and lets
the host test the locked model on images encrypted with the key, on plain ones, and on ones encrypted with wrong keys.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Iterator
from pathlib import Path

import mmcv
from mmengine.config import Config
from mmengine.runner import Runner
from tables import add_option, write_table

import keyseg_mm.mm  # noqa: F401 - the mends, before any config is read
from keyseg_mm import SecretKey, write_key_file
from keyseg_mm.atomic import write_new
from keyseg_mm.cli import main as keyseg
from keyseg_mm.demo.run import KEY, config_text
from keyseg_mm.mm.floor import constant_prediction_floor
from keyseg_mm.mm.scenes import HEIGHT, WIDTH, write_scenes

COUNTS = {'train': 160, 'val': 40}
SIZE = (HEIGHT, WIDTH)
PATCH, DIMS = 8, 96
NORM = dict(type='BN', requires_grad=True)
WRONG = (1, 2, 3)


def config(out: Path, iterations: int) -> Config:
    """The demo's config with a plain ViT in the place of its protected SegFormer."""
    (out / 'demo.py').write_text(config_text(iterations, seed=0, batch=8))
    cfg = Config.fromfile(str(out / 'demo.py'))
    cfg.custom_hooks = []
    backbone = dict(type='VisionTransformer', img_size=SIZE, patch_size=PATCH, embed_dims=DIMS, num_layers=4)
    backbone.update(num_heads=4, out_indices=[3], final_norm=True, interpolate_mode='bilinear')
    head = dict(type='SETRUPHead', in_channels=DIMS, channels=64, in_index=0, num_classes=19, num_convs=2)
    head.update(up_scale=2, kernel_size=3, align_corners=False, dropout_ratio=0.0, norm_cfg=NORM)
    head['loss_decode'] = dict(type='CrossEntropyLoss', avg_non_ignore=True)
    model = {'type': 'EncoderDecoder', 'data_preprocessor': cfg.model.data_preprocessor}
    cfg.model = dict(model, backbone=backbone, decode_head=head, train_cfg={}, test_cfg=dict(mode='whole'))
    cfg.optim_wrapper.optimizer.lr = 1e-3
    return cfg


def test(cfg: Config, checkpoint: Path, key: str | None) -> dict[str, float]:
    """The host's test; ``key`` None takes the images as they are."""
    cfg = copy.deepcopy(cfg)
    cfg.load_from, cfg.work_dir = str(checkpoint), str(checkpoint.parent / 'test')
    if key is not None:
        load, *rest = cfg.test_dataloader.dataset.pipeline
        cfg.test_dataloader.dataset.pipeline = [
            load,
            dict(type='keyseg_mm.EncryptImage', method='PATCH', key=key),
            *rest,
        ]
        cfg.custom_hooks = [dict(type='keyseg_mm.GuardHook')]
    return {name: float(value) for name, value in Runner.from_cfg(cfg).test().items()}


def floor(out: Path) -> float:
    """mIoU of the best constant prediction on the test scenes."""
    labels = sorted((out / 'scenes' / 'gtFine' / 'val').rglob('*_labelTrainIds.png'))
    return constant_prediction_floor((mmcv.imread(str(path), 'unchanged') for path in labels), 19)


def table(found: dict[str, dict[str, float]], least: float) -> Iterator[list[str]]:
    """A row for each way to test, and the floor."""
    rows = {
        ('plain', 'plain'): ['plain model, plain images'],
        ('locked', 'encrypted with the key'): ['locked model, the right key'],
        ('locked', 'plain'): ['locked model, no key: plain images'],
        ('locked', 'encrypted with three wrong keys'): [f'locked model, wrong key {seed}' for seed in WRONG],
    }
    for title, names in rows.items():
        yield [*title, *(', '.join(f'{found[name][metric]:.2f}' for name in names) for metric in ('mIoU', 'aAcc'))]
    yield ['constant guess (the floor)', '', f'{least:.2f}', '']


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, required=True, help='folder to make')
    parser.add_argument('--iterations', type=int, default=200)
    parser.add_argument('--train', type=int, default=COUNTS['train'], help='scenes to train with')
    parser.add_argument('--val', type=int, default=COUNTS['val'], help='scenes to test with')
    add_option(parser)
    args = parser.parse_args()
    args.out.mkdir(parents=True)
    write_scenes(args.out / 'scenes', 0, {'train': args.train, 'val': args.val})
    write_key_file(args.out / KEY, SecretKey.generate())
    cfg = config(args.out, args.iterations)
    Runner.from_cfg(copy.deepcopy(cfg)).train()
    plain, locked = args.out / 'train' / f'iter_{args.iterations}.pth', args.out / 'locked.pth'
    Config(dict(model=cfg.model.to_dict())).dump(str(args.out / 'plain.py'))
    right = f'file:{args.out / KEY}'
    how = ['--config', str(args.out / 'plain.py'), '--scheme', 'patches']
    if keyseg(['lock', str(plain), *how, '--key', right, '--out', str(locked)]):
        raise SystemExit(1)
    found = {'plain model, plain images': test(cfg, plain, None)}
    for name, key in (('the right key', right), ('no key: plain images', 'none')):
        found[f'locked model, {name}'] = test(cfg, locked, key)
    for seed in WRONG:
        found[f'locked model, wrong key {seed}'] = test(cfg, locked, f'random:{seed}')
    write_new(args.out / 'figures.json', lambda file: file.write(json.dumps(found, indent=1).encode()))
    write_table(args.table, ('model', 'images', 'mIoU', 'pixels right'), table(found, floor(args.out)))


if __name__ == '__main__':
    main()
