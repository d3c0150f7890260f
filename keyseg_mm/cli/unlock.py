"""Unlock a protected checkpoint: the plain model again, bit for bit where permutations and signs protected it.

A checkpoint that was locked needs no config. One that was trained with the key does, to find the layers that read the
encrypted maps; where something else than such layers reads them, it cannot be unlocked, and runs with its encryptors.

To run a protected checkpoint at plain speed there is no need to write the plain weights to a disk:
  keyseg test CONFIG locked.pth --cfg-options model.protection.key=file:keys/my.key model.protection.unlock=True

examples:
  keyseg unlock locked.pth --key file:keys/my.key --out plain.pth
  keyseg unlock trained.pth --config CONFIG --key file:keys/my.key --out plain.safetensors
"""

from __future__ import annotations

import argparse
from pathlib import Path

from keyseg_mm.cli.console import add_key, add_opening, add_out, plain_model, print_dropped, real_key


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``keyseg unlock``."""
    parser.add_argument('checkpoint', type=Path, help='protected checkpoint, .pth or .safetensors')
    add_key(parser, 'locator of its key')
    add_out(parser, 'plain checkpoint to make')
    add_opening(parser)


def run(args: argparse.Namespace) -> int:
    """Unlock and write."""
    from keyseg_mm.atomic import refuse_existing
    from keyseg_mm.checkpoint.operations import unlock_file

    refuse_existing(args.out, args.overwrite)
    key = real_key(args.key)
    dropped = unlock_file(args.checkpoint, key, args.out, plain_model(args.config), not args.no_verify, args.overwrite)
    print(f'made {args.out}: the plain model, for whoever has the file')
    print_dropped(dropped)
    return 0
