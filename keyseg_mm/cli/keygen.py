"""Make a secret key file.

The file is readable by you only (0600) and never written over another one. Whoever has it has the full accuracy of
every model protected with it, so keep it as you keep a password, and keep a copy: a lost key cannot be made again.

examples:
  keyseg keygen --out keys/ade.key
  keyseg keygen --out keys/ade.key --passphrase          sealed: asks for a passphrase, twice
  keyseg keygen --master file:keys/master.key --licensee 'ACME Ltd' --out acme.key
"""

from __future__ import annotations

import argparse
import os
import sys
from getpass import getpass

from keyseg_mm.errors import KeyFileError
from keyseg_mm.keys.key import SecretKey
from keyseg_mm.keys.keyfile import PASSPHRASE_VARIABLE, default_comment, write_key_file
from keyseg_mm.keys.locator import locate_real


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``keyseg keygen``."""
    parser.add_argument('--out', required=True, metavar='FILE', help='key file to make')
    parser.add_argument('--passphrase', action='store_true', help='seal the file with a passphrase (scrypt)')
    parser.add_argument('--master', metavar='LOC', help='locator of a master key to derive a licensee key from')
    parser.add_argument('--licensee', metavar='NAME', help='with --master: whose key; a name always gives the same key')


def run(args: argparse.Namespace) -> int:
    """Make the key file and say how to name it."""
    if bool(args.master) != bool(args.licensee):
        raise KeyFileError('--master and --licensee go together: the key of NAME is derived from the master key')
    if args.master:
        key, comment = _licensee_key(args.master, args.licensee), f'licensee: {args.licensee}'
    else:
        key, comment = SecretKey.generate(), ''
    passphrase = _new_passphrase() if args.passphrase else None
    write_key_file(args.out, key, passphrase, comment)
    print(f'made {args.out}, key id {key.id}')
    print(f'  {default_comment(args.out)}')
    print(f'  on a command line: --cfg-options model.protection.key=file:{args.out}')
    if passphrase is not None:
        print(f'  training and testing take the passphrase from the environment variable {PASSPHRASE_VARIABLE}')
    return 0


def ask_passphrase(path: str) -> str:
    """Ask at the terminal for a sealed file's passphrase; without a terminal the environment must have it."""
    if PASSPHRASE_VARIABLE in os.environ:
        return os.environ[PASSPHRASE_VARIABLE]
    if not sys.stdin.isatty():
        raise KeyFileError(f'{path} is sealed and there is no terminal to ask at; set {PASSPHRASE_VARIABLE}')
    return getpass(f'passphrase of {path}: ')


def _licensee_key(master: str, name: str) -> SecretKey:
    return locate_real(master, '--master', ask_passphrase).licensee(name)


def _new_passphrase() -> str:
    if PASSPHRASE_VARIABLE in os.environ:
        return os.environ[PASSPHRASE_VARIABLE]
    if not sys.stdin.isatty():
        raise KeyFileError(f'there is no terminal to ask for a passphrase at; set {PASSPHRASE_VARIABLE}')
    first = getpass('passphrase: ')
    if first != getpass('the same again: '):
        raise KeyFileError('the two passphrases differ; nothing was written')
    return first
