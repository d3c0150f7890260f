"""Make a secret key file.

The file is readable by you only (0600) and never written over another one; a folder that is missing is made, for you
only too. Whoever has the file has the full accuracy of every model protected with it, so keep it as you keep a
password, and keep a copy: a lost key cannot be made again.

examples:
  keyseg keygen --out keys/ade.key
  keyseg keygen --out keys/ade.key --passphrase          sealed: asks for a passphrase, twice
  keyseg keygen --master file:keys/master.key --licensee 'ACME Ltd' --out acme.key
"""

from __future__ import annotations

import argparse
from pathlib import Path

from keyseg_mm.cli.console import new_passphrase, real_key
from keyseg_mm.errors import KeyFileError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``keyseg keygen``."""
    parser.add_argument('--out', required=True, type=Path, metavar='FILE', help='key file to make')
    parser.add_argument('--passphrase', action='store_true', help='seal the file with a passphrase (scrypt)')
    parser.add_argument('--master', metavar='LOC', help='locator of a master key to derive a licensee key from')
    parser.add_argument('--licensee', metavar='NAME', help='with --master: whose key; a name always gives the same key')


def run(args: argparse.Namespace) -> int:
    """Make the key file and say how to name it."""
    from keyseg_mm.keys.key import SecretKey
    from keyseg_mm.keys.keyfile import PASSPHRASE_VARIABLE, default_comment, write_key_file

    if bool(args.master) != bool(args.licensee):
        raise KeyFileError('--master and --licensee go together: the key of NAME is derived from the master key')
    if args.master:
        key, comment = real_key(args.master, '--master').licensee(args.licensee), f'licensee: {args.licensee}'
    else:
        key, comment = SecretKey.generate(), ''
    passphrase = new_passphrase() if args.passphrase else None
    _make_folder(args.out.parent)
    write_key_file(args.out, key, passphrase, comment)
    print(f'made {args.out}, key id {key.id}')
    print(f'  {default_comment(args.out)}')
    print(f'  on a command line: --cfg-options model.protection.key=file:{args.out}')
    if passphrase is not None:
        print(f'  training and testing take the passphrase from the environment variable {PASSPHRASE_VARIABLE}')
    return 0


def _make_folder(folder: Path) -> None:
    """Make the folder of a key file where it is missing, each part of the path for its owner only."""
    for part in reversed([folder, *folder.parents]):
        if not part.exists():
            try:
                part.mkdir(mode=0o700)
            except OSError as error:
                raise KeyFileError(f'could not make the folder {part}: {error.strerror or error}') from None
