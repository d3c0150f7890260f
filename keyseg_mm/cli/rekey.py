"""Give a protected checkpoint another key, in one step: the plain weights never touch the disk.

Retire a key that got about, or make each customer a copy of their own. A customer's key and salt are derived from the
master key, their name and the model, so there is nothing to keep a record of, and `keyseg trace` can tell whose copy is
whose.

examples:
  keyseg rekey locked.pth --key file:keys/old.key --new-key file:keys/new.key --out rekeyed.pth
  keyseg rekey locked.pth --master file:keys/master.key --licensee 'ACME Ltd' --out acme.pth
  keyseg keygen --master file:keys/master.key --licensee 'ACME Ltd' --out acme.key        the key that opens it
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from keyseg_mm.cli.console import add_key, add_opening, add_out, plain_model, print_dropped, real_key
from keyseg_mm.errors import KeyFileError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``keyseg rekey``."""
    parser.add_argument('checkpoint', type=Path, help='protected checkpoint, .pth or .safetensors')
    add_key(parser, 'locator of its key (default: that of --master)', required=False)
    parser.add_argument('--new-key', metavar='LOC', help='locator of the key to come')
    parser.add_argument('--master', metavar='LOC', help="locator of the master key that the licensee's is derived from")
    parser.add_argument('--licensee', metavar='NAME', help='with --master: whose copy')
    add_out(parser, 'protected checkpoint to make')
    add_opening(parser)


def run(args: argparse.Namespace) -> int:
    """Rekey and write."""
    from keyseg_mm.atomic import refuse_existing
    from keyseg_mm.bind import licensee_salt
    from keyseg_mm.checkpoint.operations import rekey_file

    if bool(args.master) != bool(args.licensee) or bool(args.master) == bool(args.new_key):
        raise KeyFileError('give --new-key LOC, or --master LOC and --licensee NAME')
    if not args.key and not args.master:
        raise KeyFileError("give --key LOC, the checkpoint's key")
    refuse_existing(args.out, args.overwrite)
    key = real_key(args.key or args.master, '--key' if args.key else '--master')
    if args.master:
        master = key if args.key in (None, args.master) else real_key(args.master, '--master')
        new_key, salt = master.licensee(args.licensee), partial(licensee_salt, master, args.licensee)
    else:
        new_key, salt = real_key(args.new_key, '--new-key'), None
    stamps, dropped = rekey_file(
        args.checkpoint, key, new_key, args.out, plain_model(args.config), salt, not args.no_verify, args.overwrite
    )
    places = sum(len(stamp.entries) for stamp in stamps.values())
    what = 'tensors' if any(stamp.tensors for stamp in stamps.values()) else 'points'
    print(f'made {args.out}: from key {key.id} to {new_key.id}, {places} {what}')
    print_dropped(dropped)
    print(f'  whoever has a copy with key {key.id} can still open that copy; what rekeying retires is the file')
    return 0
