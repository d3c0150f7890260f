#!/usr/bin/env python
"""Audit every way of protecting a model, on real photos: what an attacker gets with and without public weights.

    python benchmarks/accuracy/audits.py --data DATA --out OUT [--model segformer fast-scnn] [--part 1/2]

DATA holds cityscapes/, as for run.py, whose trainings in OUT are taken over. For each model: a plain training, which
plays the public weights; a plain one fine-tuned from it, which is locked at `linear` and at `stages` with each
transform; one trained with the key from the start (`stages`, `ChannelPermutation`: the paper's way); and at `linear`
with signs one trained with the key and one fine-tuned with it from the public weights. Each of the protected files
is audited with the attacks of `keyseg audit`, small budgets, and 1, 5 and 10 % of the photos. Prints one row for each,
the advantages beside the best attack and the best control. Attacks and controls that need public weights are left out
for the columns without them.

Finished steps are kept in OUT. `--part 1/2` and `--part 2/2` share the work between two processes; without `--part`
all results are printed. Each audit has its report in OUT/MODEL-cityscapes-seed0/audit-NAME.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from locking import keyseg
from run import HERE, NAMES, WORDS, keyed_as, suffix_of, train
from tables import add_option, write_table

from keyseg_mm import SecretKey, write_key_file
from keyseg_mm.audit.engine.attack import ModelSuite
from keyseg_mm.audit.engine.audit import audit as run_audit
from keyseg_mm.audit.model.audit import ModelOrder
from keyseg_mm.audit.model.report import ModelReport, advantage
from keyseg_mm.errors import LockError

# Steps that a small training learns in, and for all of it to run in a few hours on two cores.
SUITE = ModelSuite(60, 15.0, 24, None, 256, (0.01, 0.05, 0.1))
FINE_TUNING = (300, 5e-4)  # iterations, peak learning rate
TRANSFORMS = ('SignedChannelPermutation', 'ChannelPermutation', 'ChannelRotation')
EVERYWHERE = ('linear', 'SignedChannelPermutation')
MODELS = ('fast-scnn', 'segformer')
TITLES = {
    'trained': 'trained with the key, `stages`, permutation',
    'trained linear signed': 'trained with the key, `linear`, signs',
    'tuned with key': 'fine-tuned with the key, `linear`, signs',
}
MUCH = 1.5  # points of advantage above which it is in bold


class Files:
    """The checkpoints of one model, trained or locked when they are first asked for."""

    def __init__(self, model: str, data: Path, out: Path, seed: int) -> None:
        self.folder, self.seed = out / f'{model}-cityscapes-seed{seed}', f'randomness.seed={seed}'
        self.folder.mkdir(parents=True, exist_ok=True)
        self.plain_config, self.keyed_config = (HERE / f'{kind}{model}_cityscapes.py' for kind in ('', 'keyed_'))
        self.root = str(data / 'cityscapes')
        self.options = [f'{part}_dataloader.dataset.data_root={self.root}' for part in ('train', 'val', 'test')]
        self.key_file = out / 'accuracy.key'
        if not self.key_file.exists():
            write_key_file(self.key_file, SecretKey.generate())
        self.keyed = f'model.protection.key=file:{self.key_file}'

    def public(self) -> Path:
        return train(self.plain_config, [*self.options, self.seed], self.folder / 'plain')

    def trained(self) -> Path:
        return train(self.keyed_config, [*self.options, self.seed, self.keyed], self.folder / 'keyed')

    def trained_everywhere(self) -> Path:
        options = [*self.options, self.seed, self.keyed, *keyed_as(*EVERYWHERE)]
        return train(self.keyed_config, options, self.folder / f'keyed{suffix_of(EVERYWHERE)}')

    def tuned(self) -> Path:
        return train(self.plain_config, self.fine_tuning(self.public()), self.folder / 'tuned')

    def tuned_with_key(self) -> Path:
        options = [*self.fine_tuning(self.public()), self.keyed, *keyed_as(*EVERYWHERE), 'model.protection.start=plain']
        return train(self.keyed_config, options, self.folder / 'keyed-tuned')

    def locked(self, points: str, transform: str) -> Path:
        return self.lock(self.tuned, points, transform, f'locked-{points}-{transform}.pth')

    def lock(self, plain: Callable[[], Path], points: str, transform: str, name: str) -> Path:
        """A locked checkpoint, made from a plain one unless it is there."""
        path = self.folder / name
        if not path.exists():
            how = ['--points', points, '--transform', transform, '--key', f'file:{self.key_file}']
            keyseg('lock', plain(), '--config', self.plain_config, '--no-seal', '--out', path, *how)
        return path

    def fine_tuning(self, start: Path) -> list[str]:
        """Options of a training that goes on from a checkpoint."""
        steps, rate = FINE_TUNING
        schedule = [f'train_cfg.{name}={steps}' for name in ('max_iters', 'val_interval')]
        schedule += [f'default_hooks.checkpoint.interval={steps}', f'param_scheduler.1.end={steps}']
        return [*self.options, *schedule, f'optim_wrapper.optimizer.lr={rate}', f'load_from={start}']

    def all(self) -> dict[str, Any]:
        """What gives each protected file, by name."""
        found: dict[str, Any] = {'trained': self.trained, 'trained linear signed': self.trained_everywhere}
        for points in ('linear', 'stages'):
            for transform in TRANSFORMS:
                found[f'locked {points} {transform}'] = lambda p=points, t=transform: self.locked(p, t)
        return {**found, 'tuned with key': self.tuned_with_key}


def audit(files: Files, name: str, checkpoint: Path) -> ModelReport:
    """The report of one file's audit."""
    out = files.folder / f'audit-{name.replace(" ", "-")}'
    config = out / 'config.py'  # the audit takes its photos from a config
    out.mkdir(exist_ok=True)  # finished runs in it are taken over
    roots = '\n'.join(f'{part}_dataloader = dict(dataset=dict(data_root={files.root!r}))' for part in ('train', 'test'))
    config.write_text(f"_base_ = '{files.plain_config}'\n{roots}\n")
    named = {'config': config, 'checkpoint': checkpoint, 'key': f'file:{files.key_file}', 'public': files.public()}
    report: ModelReport = run_audit(ModelOrder(**named, out=out, suite='table', limits=SUITE, bars=False))[0]
    return report


def row(report: ModelReport) -> dict[str, Any]:
    """Advantages by share, without and with public weights."""
    found: dict[str, Any] = {'key': report.authorised.miou, 'no key': report.no_key.miou}
    without = tuple(one for one in report.outcomes if 'public' not in one.about.needs)
    for what, outcomes in (('', without), (' + public', report.outcomes)):
        for share in (None, *SUITE.shares):
            gain = advantage(dataclasses.replace(report, outcomes=outcomes), share)
            best = {'attack': gain.attack, 'control': gain.control}
            name = f'{gain.photos or "no"} photos{what}'
            found[name] = {part: [one.about.name, one.score.miou] for part, one in best.items()}
            found[name]['advantage'] = gain.advantage
    return {**found, 'floor': report.floor}


def show(name: str, found: dict[str, Any]) -> None:
    """A row, printed."""
    print(f'{name}: key {found["key"]:.1f}, no key {found["no key"]:.1f}, floor {found["floor"]:.1f}')
    for what, gain in found.items():
        if isinstance(gain, dict):
            (attack, got), (control, had) = gain['attack'], gain['control']
            print(f'  {what:20} {gain["advantage"]:+6.1f}   {attack} {got:.1f}, {control} {had:.1f}', flush=True)


def table(results: dict[str, dict[str, Any]]) -> Iterator[list[str]]:
    """Heads, and two rows for each file: without public weights and with them."""
    for name, found in results.items():
        model, _, what = name.partition(', ')
        gains = {photos: gain for photos, gain in found.items() if isinstance(gain, dict)}
        if name == next(iter(results)):
            shares = ('', *(f' ({100 * share:g} %)' for share in SUITE.shares))
            yield ['model, protection', 'right key', 'no key', 'public weights', *map(str.__add__, gains, shares)]
        locked = [word if word == 'locked' else WORDS.get(word, f'`{word}`') for word in what.split()]
        head = [f'{NAMES[model]}, {TITLES.get(what) or ", ".join(locked)}']
        head += [f'{found[key]:.1f}' for key in ('key', 'no key')]
        shown = {photos: f'{gain["advantage"]:+.1f}' for photos, gain in gains.items()}
        cells = [
            f'{f"**{text}**" if float(text) > MUCH else text} ({gains[photos]["attack"][1]:.1f})'
            for photos, text in shown.items()
        ]
        yield [*head, 'no', *cells[: len(cells) // 2]]
        yield ['', '', '', 'yes', *cells[len(cells) // 2 :]]


def main() -> None:
    """Audit and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', type=Path, required=True)
    parser.add_argument('--out', type=Path, required=True)
    parser.add_argument('--model', nargs='+', choices=MODELS, default=list(MODELS))
    parser.add_argument('--seed', type=int, default=0, help="of run.py's trainings (0)")
    parser.add_argument('--part', default='1/1', metavar='K/N', help='only every Nth file, from the Kth on')
    parser.add_argument('--only', nargs='+', metavar='WORD', help='only files whose names contain one of these')
    add_option(parser)
    args = parser.parse_args()
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    part, parts = map(int, args.part.split('/'))
    results = {}
    for model in args.model:
        files = Files(model, args.data.resolve(), out, args.seed)
        for name, make in list(files.all().items())[part - 1 :: parts]:
            if args.only and not any(word in name for word in args.only):
                continue
            try:
                checkpoint = make()
            except (LockError, SystemExit) as error:  # points that nothing can absorb
                print(f'{model}, {name}: {error}', flush=True)
                continue
            results[f'{model}, {name}'] = row(audit(files, name, checkpoint))
            show(f'{model}, {name}', results[f'{model}, {name}'])
    if parts == 1 and results:
        (out / 'audits.json').write_text(json.dumps(results, indent=1) + '\n')
        columns, *rows = table(results)
        write_table(args.table, columns, rows)


if __name__ == '__main__':
    main()
