"""List the encryption points of a config's model: which fire, in which pass, with which shapes.

The model is built and run once as in testing and once as in training, on a small noise image. Every place where a
feature map was seen is a point. Without --points all of them are listed; with it those that it names, as in training.

examples:
  keyseg points CONFIG --points stages
  keyseg points CONFIG --points linear
  keyseg points CONFIG --match decode_head
"""

from __future__ import annotations

import argparse
from pathlib import Path

from keyseg_mm.model.points import PRESETS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``keyseg points``."""
    parser.add_argument('config', type=Path, help='config file, protected or plain')
    presets = '; '.join(f'{name}: {meaning}' for name, meaning in PRESETS.items())
    parser.add_argument('--points', nargs='+', metavar='POINT', help=f'points or presets to resolve ({presets})')
    parser.add_argument('--match', metavar='TEXT', default='', help='only points whose text holds TEXT')


def run(args: argparse.Namespace) -> int:
    """Trace the model and print the table."""
    from keyseg_mm.cli.tables import print_table
    from keyseg_mm.mm.config import build_plain_model, read_config
    from keyseg_mm.mm.dryrun import trace_module
    from keyseg_mm.model.sites import resolve

    model = build_plain_model(read_config(args.config))
    trace = trace_module(model)
    sites = resolve(args.points, model, trace) if args.points else list(trace.sites.values())
    rows = [
        (str(s.point), str(s.channels), 'x'.join(map(str, s.shape)), s.layer, '+'.join(s.runs))
        for s in sites
        if args.match in str(s.point)
    ]
    head = ('point', 'channels', 'seen shape', 'module', 'fires in')
    print_table(head, rows)
    print(f'\n{len(rows)} points of {type(model).__name__}')
    return 0
