"""Make a secret key file, or a customer's identity.

The file is readable by you only (0600) and never written over another one; a folder that is missing is made, for you
only too. Whoever has the file has the full accuracy of every model protected with it, so keep it as you keep a
password, and keep a copy: a lost key cannot be made again.

A customer who does not want their secret half to travel makes an identity, and mails the line that is printed: its
recipient. Files that are sealed to it (`keyseg lock --to`, `keyseg rekey --to`) open with the identity alone.

examples:
  keyseg keygen --out keys/ade.key
  keyseg keygen --out keys/ade.key --passphrase          sealed: asks for a passphrase, twice
  keyseg keygen --master file:keys/master.key --licensee 'ACME Ltd' --out acme.key
  keyseg keygen --identity --out my.identity             prints the recipient, to be given away
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from keyseg_mm.cli.console import master_key, new_passphrase
from keyseg_mm.errors import KeyFileError

if TYPE_CHECKING:
    from keyseg_mm.keys.identity import Key


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``keyseg keygen``."""
    parser.add_argument('--out', required=True, type=Path, metavar='FILE', help='key file to make')
    parser.add_argument('--passphrase', action='store_true', help='seal the file with a passphrase (scrypt)')
    parser.add_argument('--identity', action='store_true', help='make an identity, and print its recipient')
    parser.add_argument(
        '--post-quantum',
        action='store_true',
        help='with --identity: a pair that a quantum computer would not break either (ML-KEM-768 and X25519); its '
        'recipient is a long line',
    )
    parser.add_argument('--master', metavar='LOC', help='locator of a master key to derive a licensee key from')
    parser.add_argument('--licensee', metavar='NAME', help='with --master: whose key; a name always gives the same key')


def run(args: argparse.Namespace) -> int:
    """Make the key file and say how to name it."""
    from keyseg_mm.atomic import make_folder
    from keyseg_mm.keys.identity import HYBRID, X25519, Identity
    from keyseg_mm.keys.key import SecretKey
    from keyseg_mm.keys.keyfile import PASSPHRASE_VARIABLE, default_comment, write_key_file

    if args.identity and args.master or args.post_quantum and not args.identity:
        raise KeyFileError('--identity stands alone, and --post-quantum goes with it')
    if bool(args.master) != bool(args.licensee):
        raise KeyFileError('--master and --licensee go together: the key of NAME is derived from the master key')
    comment = ''
    key: Key = SecretKey.generate()
    if args.master:
        key, comment = master_key(args.master).licensee(args.licensee), f'licensee: {args.licensee}'
    elif args.identity:
        key = Identity.generate(HYBRID if args.post_quantum else X25519)
    passphrase = new_passphrase() if args.passphrase else None
    make_folder(args.out.parent)
    write_key_file(args.out, key, passphrase, comment)
    print(f'made {args.out}, key id {key.id}')
    if isinstance(key, Identity):
        print(f'  recipient, to be given away: {key.recipient.to_text()}')
    print(f'  {default_comment(args.out)}')
    print(f'  on a command line: --key file:{args.out}')
    if passphrase is not None:
        print(f'  training and testing take the passphrase from the environment variable {PASSPHRASE_VARIABLE}')
    return 0
