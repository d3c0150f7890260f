#!/usr/bin/env python
"""What a thief leaves of a customer's fingerprint, against the mIoU that they have left.

    python benchmarks/accuracy/thieves.py CONFIG CHECKPOINT --data-root DATA/cityscapes --out OUT.json
        [--only WORD ...] [--photos N] [--iterations 150] [--names 10000] [--asked 200] [--innocents FILE.npy]

Copies of a plain checkpoint are made for customers, and treated as a thief would who can open them: fine-tuned, pruned,
changed by noise, cast, quantised, averaged with up to seven others, their channels in another order and scale, norms
folded, distilled into a new model. Each row: the mIoU on the test photos, z of whoever's copies it was made of (the
smallest of them), the bound of the probability that chance gives any of the names such a z, the largest z of all other
names, and how many of those were accused; the tables at the end. --table gets that of single copies, and a file beside
it, *-copies, that of copies put together. --innocents keeps the z of all names that had no part in one plain copy.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope
from mmseg.registry import DATASETS, MODELS
from run import add_option
from scipy.stats import kstest
from thieves_changes import COLLUSIONS, Weights, every, moved, noisy, pruned, quantised, together
from thieves_tables import write_tables
from torch import Tensor, nn
from tqdm import tqdm

from keyseg_mm import SecretKey
from keyseg_mm.audit.model.referee import confusion
from keyseg_mm.checkpoint.files import read_checkpoint
from keyseg_mm.mm.floor import floor_of_dataset
from keyseg_mm.tracing import Fingerprint, gather, model_of, search
from keyseg_mm.tracing.marking import STRENGTH
from keyseg_mm.tracing.scoring import CERTAIN, Part, log10_chance

MASTER = SecretKey(bytes(range(32)))
BATCH = 8
VALUES = 50_000  # weights that innocent names are asked with


@dataclass
class Bench:
    """A model on its photos.

    Attributes:
        cfg: of the plain model.
        plain: its trained weights.
        photos: how many of the test photos are looked at.
        iterations: of fine-tuning, and of distillation.
        strength: of the fingerprints.
    """

    cfg: Config
    plain: Weights
    photos: int | None
    iterations: int
    strength: float

    def __post_init__(self) -> None:
        self.classes = self.cfg.model.decode_head.num_classes
        photos = self._dataset('test')
        self.tests = [photos[i] for i in range(0, len(photos), len(photos) // (self.photos or len(photos)))]

    def _dataset(self, part: str) -> Any:
        found = DATASETS.build(self.cfg[f'{part}_dataloader'].dataset)
        found.full_init()
        return found

    def build(self, weights: Weights | None = None) -> Any:
        """The plain architecture, with weights."""
        torch.manual_seed(0)
        model = MODELS.build(copy.deepcopy(self.cfg.model))
        if weights is None:
            model.init_weights()
        else:
            model.load_state_dict({n: v.to(self.plain[n].dtype) for n, v in weights.items()}, strict=False)
        return model.eval()

    def copy_for(self, name: str) -> Weights:
        """A customer's copy."""
        tensors = {name: value.clone() for name, value in self.plain.items()}
        Fingerprint(MASTER, name, self.strength).put(tensors)
        return tensors

    def miou(self, model: nn.Module) -> float:
        """In percent, over the classes that occur."""
        total = np.zeros((self.classes, self.classes), dtype=np.int64)
        with torch.no_grad():
            for item in self.tests:
                said = model.test_step(pseudo_collate([item]))[0].pred_sem_seg.data[0]
                total += confusion(item['data_samples'].gt_sem_seg.data[0], said, self.classes)
        hits, every = np.diag(total), total.sum(0) + total.sum(1) - np.diag(total)
        return float(100 * np.mean(hits[every > 0] / every[every > 0]))

    def batches(self, seed: int = 0) -> Iterator[dict[str, Any]]:
        """Training photos, as the config changes them."""
        photos, draw = self._dataset('train'), np.random.default_rng(seed)
        np.random.seed(seed)
        while True:
            yield pseudo_collate([photos[int(i)] for i in draw.choice(len(photos), BATCH, replace=False)])

    def trained(self, model: Any, lr: float, loss: Callable[[Any, Any, list[Any]], Tensor], what: str) -> Any:
        """A model after some iterations with AdamW."""
        model.train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
        batches = self.batches()
        for _ in tqdm(range(self.iterations), desc=what, leave=False, disable=not sys.stderr.isatty()):
            data = model.data_preprocessor(next(batches), training=True)
            optimizer.zero_grad()
            loss(model, data['inputs'], data['data_samples']).backward()
            optimizer.step()
        return model.eval()

    def tuned(self, weights: Weights, lr: float) -> Any:
        """Fine-tuned on the owner's own labels: the best that a thief can have."""
        return self.trained(
            self.build(weights), lr, lambda m, x, y: m.parse_losses(m.loss(x, y))[0], f'fine-tuning at {lr}'
        )

    def distilled(self, weights: Weights) -> Any:
        """A new model, taught what the copy says of photos without labels."""
        teacher = self.build(weights)

        def loss(student: Any, inputs: Tensor, samples: list[Any]) -> Tensor:
            with torch.no_grad():
                wanted = teacher(inputs, mode='tensor').softmax(1)
            return nn.functional.cross_entropy(student(inputs, mode='tensor'), wanted)

        return self.trained(self.build(), 2e-3, loss, 'distillation')

    def folded(self, weights: Weights) -> Any:
        """With its batch norms in the convolutions before them."""
        from mmcv.cnn import fuse_conv_bn

        return fuse_conv_bn(self.build(weights)).eval()


MEASURED = ('mean of 2 copies', 'mean of 8 copies', 'beyond (largest + smallest - median) of 8 copies')


def treatments(bench: Bench, names: list[str]) -> dict[str, tuple[list[str], Callable[[], Any]]]:
    """By title, whose copies are used, and what makes a model, or weights, of them."""
    one = bench.copy_for(names[0])
    simple: dict[str, Callable[[], Any]] = {
        'nothing': lambda: one,
        **{f'fine-tuned at {lr:g}': lambda lr=lr: bench.tuned(one, lr) for lr in (1e-4, 1e-3, 5e-3)},
        **{f'pruned by {s:.0%}': lambda s=s: every(one, lambda v: pruned(v, s)) for s in (0.3, 0.5, 0.7, 0.9)},
        **{f'noise of {s:.0%}': lambda s=s: every(one, lambda v: noisy(v, s)) for s in (0.01, 0.03, 0.1, 0.3)},
        'float16': lambda: every(one, lambda v: v.half().float()),
        'bfloat16': lambda: every(one, lambda v: v.bfloat16().float()),
        **{
            f'int{b}, a scale for each {"row" if r else "tensor"}': lambda b=b, r=r: every(
                one, lambda v: quantised(v, b, r)
            )
            for b, r in ((8, False), (8, True), (4, True))
        },
        'channels in any order and scale *': lambda: every(one, moved),
        'the same, pruned by 50% *': lambda: every(every(one, lambda v: pruned(v, 0.5)), moved),
        'norms folded': lambda: bench.folded(one),
        'distilled into a new model': lambda: bench.distilled(one),
    }
    found = {title: (names[:1], make) for title, make in simple.items()}
    copies: dict[str, Weights] = {}
    for count in (2, 3, 4, 8):
        for how, change in COLLUSIONS.items():

            def put_together(count: int = count, change: Callable[[Tensor], Tensor] = change) -> Weights:
                for name in names[:count]:
                    copies.setdefault(name, bench.copy_for(name))
                return together([copies[name] for name in names[:count]], change)

            found[f'{how} of {count} copies'] = (names[:count], put_together)
    return found


def measure(bench: Bench, made: Any, guilty: list[str], names: list[str], count: int) -> dict[str, Any]:
    """A row of the table; of channels in another order no function is asked for."""
    model = made if isinstance(made, nn.Module) else None
    weights = dict(model.state_dict()) if model is not None else made
    scores = {s.name: s for s in search(gather(weights, bench.plain), MASTER, model_of(bench.plain), names)}
    found, others = [scores[n] for n in guilty], [s for n, s in scores.items() if n not in guilty]
    worst = min(found, key=lambda s: s.z)
    return {
        'z': worst.z,
        'log10 chance': log10_chance(worst.z, count),
        'found': sum(log10_chance(s.z, count) <= math.log10(CERTAIN) for s in found),
        'of': len(guilty),
        'largest z of others': max(s.z for s in others),
        'others accused': sum(log10_chance(s.z, count) <= math.log10(CERTAIN) for s in others),
        'weights': worst.values,
    }


def innocents(bench: Bench, names: list[str], out: Path | None) -> dict[str, float]:
    """The distribution of z over names that had no part in a copy, by the same weights for all of them."""
    largest = max(gather(bench.copy_for('somebody else'), bench.plain), key=lambda one: len(one.values))
    part, model = Part.of([replace(largest, values=largest.values[:VALUES])]), model_of(bench.plain)
    z = np.array([part.z(MASTER, model, name) for name in tqdm(names, disable=None)])
    if out is not None:
        np.save(out, z)
    test = kstest(z, 'norm')
    return {
        'names': len(z),
        'weights': min(VALUES, len(largest.values)),
        'mean': float(z.mean()),
        'std': float(z.std()),
        'largest': float(z.max()),
        'KS': float(test.statistic),
        'KS p': float(test.pvalue),
    }


def asked_for() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', type=Path)
    parser.add_argument('checkpoint', type=Path)
    parser.add_argument('--data-root', required=True, help='root of the data set that the config tests on')
    parser.add_argument('--out', type=Path, required=True, help='JSON; rows that it has already are kept')
    parser.add_argument('--only', nargs='+', metavar='WORD', help='rows whose titles have one of these words')
    parser.add_argument('--photos', type=int, help='how many test photos (all)')
    parser.add_argument('--iterations', type=int, default=150, help='of fine-tuning and distillation (150)')
    parser.add_argument('--names', type=int, default=10_000, help='how many customers there are (10000)')
    parser.add_argument('--asked', type=int, default=200, help='how many of them each file is asked about (200)')
    parser.add_argument('--copies', type=int, default=0, help='test the copies of so many customers, nothing else')
    parser.add_argument('--strength', type=float, default=STRENGTH)
    parser.add_argument('--innocents', type=Path, metavar='FILE', help='z of all innocent names, for a chart, as .npy')
    add_option(parser)
    return parser.parse_args()


def main() -> None:
    """Measure and print."""
    args = asked_for()
    cfg = Config.fromfile(str(args.config))
    init_default_scope('mmseg')
    for part in ('train', 'test'):
        cfg[f'{part}_dataloader'].dataset.data_root = args.data_root
    bench = Bench(cfg, read_checkpoint(args.checkpoint)['state_dict'], args.photos, args.iterations, args.strength)
    names = [f'customer {i}' for i in range(args.names)]
    rows: dict[str, Any] = json.loads(args.out.read_text()) if args.out.exists() else {}

    def keep(title: str, row: dict[str, Any]) -> None:
        rows[title] = row
        args.out.write_text(json.dumps(rows, indent=1) + '\n')
        print(
            title, ', '.join(f'{k} {v:.4g}' if isinstance(v, float) else f'{k} {v}' for k, v in row.items()), flush=True
        )

    if 'plain' not in rows:
        floor = floor_of_dataset(cfg.test_dataloader.dataset, bench.classes)
        keep('plain', {'mIoU': bench.miou(bench.build(bench.plain)), 'floor': floor, 'photos': len(bench.tests)})
    if args.copies:
        keep('copies', {'mIoU': [bench.miou(bench.build(bench.copy_for(name))) for name in names[: args.copies]]})
        return
    for title, (guilty, make) in treatments(bench, names).items():
        if title in rows or (args.only and not any(word in title for word in args.only)):
            continue
        made = make()
        row = measure(bench, made, guilty, names[: args.asked], len(names))
        if not title.endswith('*') and (len(guilty) == 1 or title in MEASURED):
            row['mIoU'] = bench.miou(made if isinstance(made, nn.Module) else bench.build(made))
        keep(title, row)
    if args.innocents is not None:
        keep('innocent names', innocents(bench, names, args.innocents))
    write_tables(args.table, rows, list(treatments(bench, names)), args.iterations)


if __name__ == '__main__':
    main()
