"""Give a protected checkpoint to others, in about the time of copying it: its envelope is made anew.

Weights and maps stay as they are, and are not opened. Whoever could open the old file can still open the old file. To
keep them out of what you write next: `--reseal` encrypts under a fresh content key, a few MiB at a time, and
`--new-maps` draws other maps too, so that nothing of the old file fits the new one. For these, for another format, and
for more recipients than the file has room for, weights are opened in memory, and never written.

A licensee's copy has maps and a fingerprint of its own, by which `keyseg trace` can tell whose copy is whose: a secret
pattern in the weights, far below what changes a prediction, which stays there when the copy is opened and trained on.
Key, salt and pattern are derived from the master key, their name and the model: keep what the copies were made of, and
no other record. For the pattern the plain weights are opened in memory. --no-fingerprint makes a bit-exact copy.

examples:
  keyseg rekey locked.pth --key file:keys/my.key --to file:customer.recipient --out for-customer.pth
  keyseg rekey locked.pth --key file:keys/old.key --new-key file:keys/new.key --new-maps --out rekeyed.pth
  keyseg rekey locked.pth --master file:keys/master.key --licensee 'ACME Ltd' --out acme.pth
  keyseg keygen --master file:keys/master.key --licensee 'ACME Ltd' --out acme.key        the key that opens it
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from keyseg_mm.cli.console import (
    add_key,
    add_licensee,
    add_opening,
    add_out,
    add_recipients,
    fingerprint_of,
    master_key,
    plain_model,
    print_dropped,
    print_fingerprint,
    real_key,
    recipients_of,
)
from keyseg_mm.errors import KeyFileError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``keyseg rekey``."""
    parser.add_argument('checkpoint', type=Path, help='protected checkpoint, .pth or .safetensors')
    add_key(parser, 'locator of its key (default: that of --master)', required=False)
    parser.add_argument('--new-key', metavar='LOC', help='locator of a key to come')
    add_recipients(parser, 'from now on')
    parser.add_argument('--reseal', action='store_true', help='encrypt it anew, under a fresh content key')
    parser.add_argument('--new-maps', action='store_true', help='with --new-key: draw other maps too, and reseal')
    add_licensee(parser)
    add_out(parser, 'protected checkpoint to make')
    add_opening(parser)


def run(args: argparse.Namespace) -> int:
    """Rekey and write."""
    from keyseg_mm.atomic import refuse_existing

    if bool(args.master) != bool(args.licensee) or bool(args.master) == bool(args.new_key or args.to):
        raise KeyFileError('give --to RECIPIENT or --new-key LOC, or --master LOC and --licensee NAME')
    if args.new_maps and not args.new_key:
        raise KeyFileError('--new-maps goes with --new-key: maps are drawn for a key')
    if not args.key and not args.master:
        raise KeyFileError("give --key LOC, the checkpoint's key")
    mark = fingerprint_of(args)
    refuse_existing(args.out, args.overwrite)
    key = real_key(args.key or args.master, '--key' if args.key else '--master')
    if args.master or args.new_maps:
        return _change_maps(args, key, mark)
    return _rewrap(args, key)


def _rewrap(args: argparse.Namespace, key: Any) -> int:
    from keyseg_mm.checkpoint.rekeying import rekey_file

    new = [real_key(args.new_key, '--new-key')] if args.new_key else []
    recipients = [*new, *recipients_of(args)]
    dropped = rekey_file(args.checkpoint, key, recipients, args.out, reseal=args.reseal, overwrite=args.overwrite)
    print(f'made {args.out}, for {" and ".join(to.id for to in recipients)}; its weights and maps are the same')
    print_dropped(dropped)
    print(f'  whoever could open {args.checkpoint} can still open that file')
    return 0


def _change_maps(args: argparse.Namespace, key: Any, mark: Any) -> int:
    from keyseg_mm.bind import licensee_salt
    from keyseg_mm.checkpoint.rekeying import change_maps_file

    if args.master:
        master = master_key(args.master)
        new_key, salt = master.licensee(args.licensee), partial(licensee_salt, master, args.licensee)
    else:
        new_key, salt = real_key(args.new_key, '--new-key'), None
    stamps, dropped = change_maps_file(
        args.checkpoint,
        key,
        new_key,
        args.out,
        recipients=recipients_of(args),
        model=plain_model(args.config),
        salt=salt,
        check=not args.no_verify,
        overwrite=args.overwrite,
        mark=mark,
    )
    places = sum(len(stamp.entries) for stamp in stamps.values())
    what = 'tensors' if any(stamp.tensors for stamp in stamps.values()) else 'points'
    print(f'made {args.out}: from key {key.id} to {new_key.id}, {places} {what}')
    print_dropped(dropped)
    print_fingerprint(mark, args.licensee)
    print(f'  whoever has a copy with key {key.id} can still open that copy; what rekeying retires is the file')
    return 0
