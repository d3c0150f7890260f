#!/usr/bin/env python
"""Protect every model that the installed mmsegmentation has a config for, and see whether it is right.

    python benchmarks/coverage/run.py --out coverage.json [--families fcn swin] [--smallest] [--minutes 90]
    python benchmarks/coverage/page.py onedl=a.json openmmlab=b.json     writes the tables of docs/coverage.md

Configs that build the same model are one. The smallest model of each family comes first. Each is looked at in a process
of its own, with bounds of time and memory; what was found is kept in --out, and not looked for again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import resource
import time
from pathlib import Path
from typing import Any

import torch
from examine import CONFIGS, examine, model_of
from torch.overrides import TorchFunctionMode
from tqdm import tqdm

from keyseg_mm.atomic import write_new

_GIB = 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, required=True, help='JSON file; one that is there is gone on with')
    parser.add_argument('--families', nargs='*', help='folders of configs (all)')
    parser.add_argument('--smallest', action='store_true', help='the smallest model of each family only')
    parser.add_argument('--minutes', type=float, default=1e6, help='begin with no model after so many')
    parser.add_argument('--seconds', type=float, default=600, help='for one model')
    parser.add_argument('--gib', type=float, default=12, help='of memory, for one model')
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = json.loads(args.out.read_text()) if args.out.exists() else {'models': {}, 'rows': {}}
    _list(found, args.out)
    ends = time.monotonic() + 60 * args.minutes
    wanted = [
        name for name in _order(found['models'], args.smallest) if not args.families or _family(name) in args.families
    ]
    for name in tqdm(wanted, unit='model'):
        if name not in found['rows'] and time.monotonic() < ends:
            found['rows'][name] = _apart(examine, name, args.seconds, args.gib)
            _keep(found, args.out)


def _list(found: dict[str, Any], out: Path) -> None:
    """What each config builds: the digest of its model's config, and how many parameters that has."""
    names = [f'{p.parent.name}/{p.stem}' for p in sorted(CONFIGS.glob('*/*.py')) if p.parent.name != '_base_']
    sizes = {row['model']: row.get('parameters') for row in found['models'].values()}
    for name in tqdm([n for n in names if not found['models'].get(n, {}).get('parameters')], unit='config'):
        row = found['models'].get(name) or _read(name)
        if not sizes.get(row['model']):
            sizes[row['model']] = _apart(_count, name, 120, 8).get('parameters')
        found['models'][name] = {**row, 'parameters': sizes[row['model']]}
    _keep(found, out)


def _read(name: str) -> dict[str, Any]:
    try:
        text = json.dumps(model_of(name).to_dict(), sort_keys=True, default=str)
    except Exception:  # what is wrong with it is found when it is its turn
        text = name
    return {'model': hashlib.sha256(text.encode()).hexdigest()[:16]}


def _count(name: str) -> dict[str, Any]:
    from mmseg.registry import MODELS

    try:
        with torch.device('meta'), _Rates():
            model = MODELS.build(model_of(name))
    except Exception:  # some of the host's classes compute with their weights as they are built
        model = MODELS.build(model_of(name))
    return {'parameters': sum(p.numel() for p in model.parameters())}


class _Rates(TorchFunctionMode):
    """The host's transformers read their rates of dropped paths off a tensor, which needs values."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **{**(kwargs or {}), **({'device': 'cpu'} if func is torch.linspace else {})})


def _order(models: dict[str, Any], smallest: bool) -> list[str]:
    """One config for each model: those first that are the smallest of their family."""
    ones: dict[str, str] = {}
    for name, row in models.items():
        ones.setdefault(row['model'], name)
    by_size = sorted(ones.values(), key=lambda name: (models[name]['parameters'] or 1e12, name))
    first: dict[str, str] = {}
    for name in by_size:
        first.setdefault(_family(name), name)
    return [*first.values(), *(name for name in by_size if name not in first.values() and not smallest)]


def _family(name: str) -> str:
    return name.partition('/')[0]


def _apart(work: Any, name: str, seconds: float, gib: float) -> dict[str, Any]:
    """What a function returns of a config, run in a process of its own; or why there is nothing."""
    here, there = multiprocessing.Pipe(duplex=False)

    def run() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (int(gib * _GIB),) * 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(1, 2)
        try:
            there.send(work(name))
        except Exception as error:
            there.send({'config': name, 'plain': f'{type(error).__name__}: {error}'[:300]})

    process = multiprocessing.get_context('fork').Process(target=run)
    process.start()
    there.close()
    try:
        found: dict[str, Any] = here.recv() if here.poll(seconds) else {'config': name, 'limit': f'{seconds:.0f} s'}
    except EOFError:
        found = {'config': name, 'limit': f'{gib:g} GiB, or a crash'}
    process.kill()
    process.join()
    return found


def _keep(found: dict[str, Any], out: Path) -> None:
    write_new(out, lambda file: file.write(json.dumps(found, indent=1).encode()), overwrite=True)


if __name__ == '__main__':
    main()
