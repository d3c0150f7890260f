"""What the commands share: arguments, keys and passphrases, numbers, tables."""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from getpass import getpass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keyseg_mm.errors import KeyFileError, shown

if TYPE_CHECKING:
    from keyseg_mm.keys.identity import Key
    from keyseg_mm.keys.secret import Text

SUITES = ('quick', 'standard', 'full')  # of audits; written out: --help must not wait for torch
_NAMED = 6  # dropped entries that are named


def add_key(parser: argparse.ArgumentParser, what: str = 'locator of the key', required: bool = True) -> None:
    """``--key``."""
    parser.add_argument('--key', required=required, metavar='LOC', help=what)


def add_out(parser: argparse.ArgumentParser, what: str, required: bool = True) -> None:
    """``--out`` and ``--overwrite``, of commands that make one file."""
    parser.add_argument('--out', required=required, type=Path, metavar='FILE', help=what)
    parser.add_argument('--overwrite', action='store_true', help='replace FILE if it exists')


def add_json(parser: argparse.ArgumentParser) -> None:
    """``--json``."""
    parser.add_argument('--json', action='store_true', help='print JSON, for programs')


def print_json(value: Any) -> None:
    """Print a value as JSON."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def add_host_options(parser: argparse.ArgumentParser) -> None:
    """What ``keyseg train`` and ``keyseg test`` take besides the options of the host's own tools."""
    add = parser.add_argument
    add('--key', metavar='LOC', help='locator of the key; wraps a plain config, and goes into a protected one')
    add('--points', nargs='+', metavar='POINT', help='what to encrypt: presets or points')
    runtime = 'with encryptors, or opened at the plain speed (testing a plain config: plain)'
    add('--runtime', choices=('keyed', 'plain'), help=runtime)


@contextmanager
def without_warnings() -> Iterator[None]:
    """Keep Python's warnings, which other packages give of themselves, from users; ``python -W`` brings them back."""
    with warnings.catch_warnings():
        if not sys.warnoptions:
            warnings.simplefilter('ignore')
        yield


def add_recipients(parser: argparse.ArgumentParser, what: str) -> None:
    """``--to``: who can open what is made."""
    opens = f'who can open it, {what}; repeatable: the line that `keyseg keygen --identity` prints, or file:PATH'
    parser.add_argument('--to', action='append', default=[], metavar='RECIPIENT', help=opens)


def recipients_of(args: argparse.Namespace) -> tuple[Any, ...]:
    """The recipients of ``--to``."""
    from keyseg_mm.keys.identity import read_recipient

    return tuple(map(read_recipient, args.to))


def add_licensee(parser: argparse.ArgumentParser) -> None:
    """``--licensee`` and what goes with it: whose copy is made, and how it can be told from others."""
    add = parser.add_argument_group("a licensee's copy").add_argument
    add('--master', metavar='LOC', help="locator of the master key that the licensee's is derived from")
    add('--licensee', metavar='NAME', help='with --master: whose copy')
    add('--no-fingerprint', action='store_true', help='leave the weights as they are, bit for bit: not to be traced')
    add('--fingerprint-strength', type=float, metavar='S', help='of the size of the weights (0.001)')


def fingerprint_of(args: argparse.Namespace) -> Any:
    """The fingerprint of the copy that is made; None where it gets none.

    Raises:
        KeyFileError: options that do not go together.
    """
    asked = args.no_fingerprint or args.fingerprint_strength is not None
    if bool(args.master) != bool(args.licensee) or (asked and not args.licensee):
        raise KeyFileError('--licensee NAME and --master LOC go together, and options of a fingerprint with both')
    if args.no_fingerprint and args.fingerprint_strength is not None:
        raise KeyFileError('give --no-fingerprint or --fingerprint-strength, not both')
    if not args.licensee or args.no_fingerprint:
        return None
    from keyseg_mm.tracing import STRENGTH, Fingerprint

    strength = STRENGTH if args.fingerprint_strength is None else args.fingerprint_strength
    return Fingerprint(master_key(args.master), args.licensee, strength)


def print_fingerprint(mark: Any, licensee: str | None) -> None:
    """Say whether a licensee's copy can be told from others."""
    if mark is not None:
        print(f'  it carries the fingerprint of {licensee!r}: keep what it was made of, which `keyseg trace` needs')
    elif licensee:
        print(f'  it carries no fingerprint: once {licensee!r} opens it, nothing tells whose it is')


def add_opening(parser: argparse.ArgumentParser) -> None:
    """What opening a protected checkpoint takes besides its key."""
    add = parser.add_argument
    add('--config', type=Path, help='its config, if it was trained with the key')
    add('--no-verify', action='store_true', help='accept signed weights that were altered since they were written')


def add_jobs(parser: argparse.ArgumentParser, what: str) -> None:
    """``--jobs`` and ``--scheduler``: what runs side by side."""
    add = parser.add_argument
    add('--jobs', type=whole_number(1), default=1, metavar='N', help=f'{what} side by side, each in a process (1)')
    where = f'run the {what} on the workers of this Dask cluster, as tcp://HOST:8786'
    add('--scheduler', metavar='ADDRESS', help=where)


def add_block_steps(parser: argparse._ActionsContainer) -> None:
    """What is done to a block of an image: the same for models and for images."""
    parser.add_argument(
        '--permute',
        choices=('all', 'channel', 'none'),
        help='what changes places within a block: all values, across the channels too (default), those of each channel '
        'for themselves, or none',
    )
    parser.add_argument('--no-negate', action='store_true', help='do not take half of the values from 255')


def whole_number(least: int) -> Callable[[str], int]:
    """What parses a whole number that is at least so large, for ``type=`` of an argument."""

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f'takes a whole number from {least} on')
        return int(text)

    return parse


def real_key(locator: str, option: str = '--key') -> Key:
    """The key of a locator on the command line, where no run without a key or with a wrong one is meant.

    Raises:
        KeyFileError: it leads to no key, or to one that is wrong on purpose.
    """
    from keyseg_mm.keys.locator import locate_real

    return locate_real(locator, option, ask_passphrase)


def master_key(locator: str) -> Any:
    """The key of ``--master``, of which licensees' keys are derived.

    Raises:
        KeyFileError: it leads to an identity, which has no licensees.
    """
    from keyseg_mm.keys.key import SecretKey

    key = real_key(locator, '--master')
    if not isinstance(key, SecretKey):
        raise KeyFileError('--master takes a secret key: an identity has no licensees')
    return key


def ask_passphrase(path: str) -> Text:
    """A sealed file's passphrase, from the environment or the terminal."""
    return _passphrase(f'{path} is sealed and there is no terminal to ask at', [f'passphrase of {path}: '])


def new_passphrase() -> Text:
    """A passphrase to seal a new file with, from the environment or typed twice."""
    return _passphrase('there is no terminal to ask for a passphrase at', ['passphrase: ', 'the same again: '])


def _passphrase(no_terminal: str, prompts: Sequence[str]) -> Text:
    from keyseg_mm.keys.content import from_environment
    from keyseg_mm.keys.keyfile import PASSPHRASE_VARIABLE
    from keyseg_mm.keys.secret import Text, unseen

    found = from_environment(PASSPHRASE_VARIABLE)
    if found is not None:
        return found
    if not sys.stdin.isatty():
        raise KeyFileError(f'{no_terminal}; set {PASSPHRASE_VARIABLE}')
    first, *others = (Text(unseen(getpass)(prompt), 'typed') for prompt in prompts)
    if any(other.reveal() != first.reveal() for other in others):
        raise KeyFileError('the two passphrases differ, and nothing was written; run it again, and type the same twice')
    return first


def plain_model(config: Path | None) -> Any:
    """The plain model of ``--config``, or None where none was given."""
    if config is None:
        return None
    from keyseg_mm.mm.config import build_plain_model, read_config

    return build_plain_model(read_config(config))


class Shown:
    """Standard output of a command: what it prints of files steers no terminal.

    Args:
        out: where it goes.
    """

    def __init__(self, out: Any) -> None:
        self._out = out

    def __getattr__(self, name: str) -> Any:
        return getattr(self._out, name)

    def write(self, text: str) -> None:
        """Print."""
        self._out.write(shown(text))


def say(text: str = '') -> None:
    """Print at once, also where the output is a file or a pipe."""
    print(text, flush=True)


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print columns as wide as they need be."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    for row in [head, ['-' * width for width in widths], *rows]:
        print('  '.join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())


def print_dropped(dropped: Sequence[str]) -> None:
    """Say what was in the file and is not in the new one."""
    if dropped:
        more = f' and {len(dropped) - _NAMED} more' if len(dropped) > _NAMED else ''
        print(f'  dropped, since it may hold plain weights or is not needed: {", ".join(dropped[:_NAMED])}{more}')
