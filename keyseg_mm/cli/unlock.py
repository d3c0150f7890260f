"""Unlock a protected checkpoint: the plain model again, bit for bit where maps are permutations and signs.

The seal is taken off, and maps are taken out of the weights. The file is readable by you only (0600). Its stamp says
which weights carry which map; where it does not, --config finds the layers that read the encrypted maps. Where others
than such layers read them, the checkpoint cannot be unlocked, and runs with its encryptors.

To run a protected checkpoint at plain speed there is no need to write the plain weights to a disk:
  keyseg test CONFIG locked.pth --key file:keys/my.key

examples:
  keyseg unlock locked.pth --key file:keys/my.key --out plain.pth
  keyseg unlock trained.pth --config CONFIG --key file:keys/my.key --out plain.safetensors
  keyseg unlock locked.pth --key file:keys/my.key --out behind-maps.pth --keep-maps     what a thief of memory has
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
    parser.add_argument(
        '--keep-maps', action='store_true', help='take the seal off alone, and leave maps in the weights'
    )


def run(args: argparse.Namespace) -> int:
    """Unlock and write."""
    from keyseg_mm.atomic import refuse_existing
    from keyseg_mm.checkpoint.operations import unlock_file

    refuse_existing(args.out, args.overwrite)
    key = real_key(args.key)
    dropped = unlock_file(
        args.checkpoint,
        key,
        args.out,
        plain_model(args.config),
        keep_maps=args.keep_maps,
        check=not args.no_verify,
        overwrite=args.overwrite,
    )
    what = 'the weights behind their maps' if args.keep_maps else 'the plain model'
    print(f'made {args.out}: {what}, for whoever has the file')
    print_dropped(dropped)
    return 0
