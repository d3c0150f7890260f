#!/usr/bin/env python
"""Which weights are the sensitive ones? Three ways to choose a share of them, by what the model loses.

    python benchmarks/accuracy/selection.py CONFIG CHECKPOINT --data-root DATA/cityscapes --out OUT

The chosen weights are moved under a fresh key, as keyseg lock --scheme selective moves them, and the file is tested
without it. `painted` is what that command does; `photos` has 16 training photos and their labels; `magnitude` takes
the largest weights of each tensor. Finished steps are kept in OUT. Prints a table.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from run import test
from tables import add_option, write_table
from torch import Tensor, nn

from keyseg_mm import SecretKey
from keyseg_mm.baselines.parameters import sensitivity
from keyseg_mm.checkpoint.files import read_checkpoint, write_checkpoint
from keyseg_mm.locking import SCHEMES, lock_in_place
from keyseg_mm.mm.config import build_plain_model, read_config
from keyseg_mm.stamp import is_stamp

SHARES = (0.001, 0.005, 0.01)
PHOTOS = 16
TITLES = {
    'painted': 'painted scenes (what `--scheme selective` does)',
    'photos': f'{PHOTOS} training photos and their labels',
    'magnitude': 'the largest of each tensor',
}

Scores = dict[str, Tensor]


def by_photos(model: nn.Module, state: dict[str, Tensor], dataset: Any) -> Scores:
    """``|w dL/dw|`` of the host's own loss on training photos, in eval mode."""
    from mmengine.dataset import pseudo_collate
    from mmseg.registry import DATASETS

    torch.manual_seed(0)
    photos = DATASETS.build(dataset)
    host: Any = model.eval()
    host.load_state_dict(state)
    data = host.data_preprocessor(pseudo_collate([photos[i] for i in range(PHOTOS)]), True)
    losses = host.loss(data['inputs'], data['data_samples'])
    sum(value for name, value in losses.items() if 'loss' in name).backward()
    return {n: (p * p.grad).detach().abs() for n, p in host.named_parameters() if p.grad is not None}


def by_magnitude(state: dict[str, Tensor]) -> Scores:
    """Each weight's rank by magnitude in its own tensor, so that a share takes as much of every tensor."""
    return {
        n: (t.abs().flatten().argsort().argsort() + 1).view(t.shape) / t.numel() for n, t in state.items() if t.dim()
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', type=Path)
    parser.add_argument('checkpoint', type=Path)
    parser.add_argument('--data-root', required=True, help='root of the data set that the config trains and tests on')
    parser.add_argument('--out', type=Path, required=True)
    add_option(parser)
    args = parser.parse_args()
    args.out = args.out.resolve()
    cfg = read_config(args.config)
    cfg.train_dataloader.dataset.data_root = args.data_root
    model, state = build_plain_model(cfg), read_checkpoint(args.checkpoint)['state_dict']
    ways: dict[str, Callable[[], Scores]] = {
        'painted': lambda: sensitivity(model, state),
        'photos': lambda: by_photos(model, state, cfg.train_dataloader.dataset),
        'magnitude': lambda: by_magnitude({n: t for n, t in state.items() if t.is_floating_point()}),
    }
    rows = []
    for way, find in ways.items():
        scores, found = find(), []
        for share in SHARES:
            out = args.out / f'{way}-{share}'
            out.mkdir(parents=True, exist_ok=True)
            if not (out / 'moved.pth').exists():
                key, moved = SecretKey.generate(), dict(state)
                lock_in_place(moved, SCHEMES['selective'].plan(model, state, share=share, scores=scores), key)
                write_checkpoint(out / 'moved.pth', {n: t for n, t in moved.items() if not is_stamp(n)}, {})
            options = [f'test_dataloader.dataset.data_root={args.data_root}']
            found.append(f'{test(args.config, out / "moved.pth", options, out / "test"):.2f}')
        rows.append([TITLES[way], *found])
        print(', '.join(rows[-1]), flush=True)
    write_table(args.table, ['', *(f'{100 * share:g} %' for share in SHARES)], rows)


if __name__ == '__main__':
    main()
