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
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``keyseg unlock``."""
    parser.add_argument('checkpoint', type=Path, help='protected checkpoint, .pth or .safetensors')
    parser.add_argument('--key', required=True, metavar='LOC', help='locator of its key')
    parser.add_argument('--out', required=True, type=Path, metavar='FILE', help='plain checkpoint to make')
    add_shared_arguments(parser)


def add_shared_arguments(parser: argparse.ArgumentParser) -> None:
    """What unlocking and rekeying have in common."""
    parser.add_argument('--config', type=Path, help='its config, if it was trained with the key')
    parser.add_argument(
        '--no-verify', action='store_true', help='take weights that were altered since they were written'
    )
    parser.add_argument('--overwrite', action='store_true', help='replace FILE if it exists')


def model_of(config: Path | None) -> Any:
    """The plain model of ``--config``, or None."""
    if config is None:
        return None
    from keyseg_mm.mm.config import build_plain_model, read_config

    return build_plain_model(read_config(config))


def run(args: argparse.Namespace) -> int:
    """Unlock and write."""
    from keyseg_mm.atomic import refuse_existing
    from keyseg_mm.checkpoint.operations import unlock_file
    from keyseg_mm.cli.keygen import ask_passphrase
    from keyseg_mm.cli.lock import show_dropped
    from keyseg_mm.keys.locator import locate_real

    refuse_existing(args.out, args.overwrite)
    key = locate_real(args.key, '--key', ask_passphrase)
    dropped = unlock_file(args.checkpoint, key, args.out, model_of(args.config), not args.no_verify, args.overwrite)
    print(f'made {args.out}: the plain model, for whoever has the file')
    show_dropped(dropped)
    return 0
