"""See in a few minutes what protection does: one small model, its sealed file, and its weights in the open.

Makes small street scenes laid out as Cityscapes, makes a key, trains a small SegFormer whose feature maps are encrypted
with it, tests the sealed checkpoint with the right key, without one and with another, then the same weights without
their seal and without their tables, and draws what each of them sees. All of it goes into one folder; what is trained
there is an ordinary mmsegmentation config and checkpoint.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from keyseg_mm.cli.console import whole_number


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``keyseg demo``."""
    add = parser.add_argument
    add('--out', type=Path, default=Path('demo_out'), help='folder for all that it makes (demo_out)')
    add('--overwrite', action='store_true', help='first remove what an earlier demo made in that folder, its key too')
    add('--iterations', type=whole_number(1), default=500, help='length of the training (500)')
    add('--seed', type=whole_number(0), default=0, help='of scenes and training (0); the key is random always')


def run(args: argparse.Namespace) -> int:
    """Run it; returns the exit status."""
    from keyseg_mm.demo import run as demo

    demo.prepare(args.out, args.overwrite)
    demo.run(args.out, args.iterations, args.seed, partial(print, file=sys.stdout, flush=True))
    return 0
