"""The console script ``keyseg``: one module for each command, imported when it is called."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import select
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import Any, NoReturn, cast

from keyseg_mm import __version__
from keyseg_mm.cli.console import Shown, add_host_options, without_warnings
from keyseg_mm.cli.status import ERROR, INTERRUPTED, STATUS
from keyseg_mm.errors import KeysegError

# group -> name -> one line for --help. Each has a module here with add_arguments(parser) and run(args) -> exit status.
GROUPS = {
    'Start': {
        'demo': 'train and test a small protected model on street scenes made on the spot',
        'keygen': 'make a secret key file, plain, sealed with a passphrase, or for a licensee; or an identity',
    },
    'Protect': {
        'lock': 'protect a trained checkpoint, without training',
        'unlock': 'turn a protected checkpoint back into the plain one',
        'rekey': 'give a protected checkpoint another key, or a licensee a copy of their own',
        'export': 'export a protected checkpoint as a sealed graph, for onnxruntime, OpenVINO and others',
    },
    'Run': {
        'train': "train a config, plain or protected, with mmsegmentation's own train.py",
        'test': "test a checkpoint, plain or protected, with mmsegmentation's own test.py",
    },
    'Look': {
        'show': 'show the public side of a key file, checkpoint or config, and the points of a model',
        'scan': 'search a folder for a key and the tables derived from it',
        'trace': 'tell whose copy a checkpoint is',
    },
    'Judge': {
        'audit': 'attack a protected checkpoint or encrypted images in every known way: what does an attacker get?',
        'compare': 'compare the published methods on your data: train, lock, test, audit, one table',
    },
}
COMMANDS = {name: line for group in GROUPS.values() for name, line in group.items()}
# This package's own tools, by `keyseg tool NAME` as the host's are, and with modules as the commands have.
TOOLS = ('encrypt_images',)
# What passes its options on to the host's own tools.
PASS_ON = ('train', 'test', 'tool')
# The packages that each extra brings.
_EXTRAS = {
    'onedl': ('mmengine', 'mmseg', 'mmcv'),
    'torch': ('torch', 'scipy', 'tqdm', 'jinja2'),
    'export': ('onnx', 'onnxscript', 'onnxruntime'),
}
# Commands that keep every finished step.
_RESUMED = ('audit', 'compare')

EPILOG = """\
a first run:
  keyseg demo                                              see what protection does, in a few minutes
  keyseg keygen --out keys/my.key                          make a key; whoever has the file has the model
  keyseg lock PLAIN.pth --config CONFIG --key file:keys/my.key --out locked.pth
  keyseg test CONFIG locked.pth --key file:keys/my.key     your own plain config; add the key, and it runs

a key is named by a locator, never typed: file:PATH, env:NAME, keyring:NAME, cmd:COMMAND (what a vault's client prints),
none (run unauthorised, on purpose), random:SEED (a wrong key, on purpose). `keyseg tool` lists what else there is:
encrypt_images, and mmsegmentation's other tools. TAB completes commands and options: pip install argcomplete, then
  eval "$(register-python-argcomplete keyseg)"

exit status: {status}
"""


def build_parser(names: list[str]) -> argparse.ArgumentParser:
    """The command line; only the named commands' own options are read in."""
    raw = argparse.RawDescriptionHelpFormatter
    listed = ''.join(
        f'\n{group}\n' + ''.join(f'  {name:9} {line}\n' for name, line in lines.items())
        for group, lines in GROUPS.items()
    )
    status = '\n  '.join(f'{number:<4} {meaning}' for number, meaning in STATUS.items())
    parser = argparse.ArgumentParser(
        prog='keyseg',
        usage='keyseg [--version] COMMAND ...      (keyseg COMMAND --help: its options, and examples)',
        description=f'Protect mmsegmentation models with a secret key.\n{listed}',
        epilog=EPILOG.format(status=f'\n  {status}'),
        formatter_class=raw,
    )
    parser.add_argument('--version', action='version', version=f'keyseg_mm {__version__}')
    commands = parser.add_subparsers(dest='command', metavar='COMMAND', required=True, help=argparse.SUPPRESS)
    for name in (*COMMANDS, *TOOLS):
        prog = f'keyseg tool {name}' if name in TOOLS else f'keyseg {name}'
        command = commands.add_parser(name, formatter_class=raw, prog=prog, add_help=name not in PASS_ON)
        if name in names and name not in PASS_ON:
            module = importlib.import_module(f'keyseg_mm.cli.{name}')
            command.description = module.__doc__
            module.add_arguments(command)
            command.set_defaults(run=module.run)
        elif name in names:
            add_host_options(command)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line; errors of this package end it with their message and status 1, without a traceback."""
    complete()
    try:
        try:
            return _run(argv)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        if not _is_read_no_more():
            raise
        return 128 + signal.SIGPIPE  # the exit status that shells give


def complete() -> None:
    """Complete the command line that a shell is asking about, and end; see ``argcomplete``."""
    if '_ARGCOMPLETE' not in os.environ:
        return
    with suppress(ImportError):  # then nothing is completed
        import argcomplete

        words = os.environ.get('COMP_LINE', '').split()
        argcomplete.autocomplete(build_parser(words[1:2]))


def _is_read_no_more() -> bool:
    """Whether nobody reads what this process prints (``| head``); then it goes nowhere from now on, without errors."""
    unread = []
    for stream in (sys.stdout, sys.stderr):
        poll = select.poll()
        poll.register(stream.fileno(), 0)  # errors are told unasked
        unread += [stream.fileno()] * any(event & select.POLLERR for _, event in poll.poll(0))
    for number in unread:
        os.dup2(os.open(os.devnull, os.O_WRONLY), number)
    return bool(unread)


def _run(argv: list[str] | None) -> int:
    arguments = sys.argv[1:] if argv is None else argv
    if arguments[:1] == ['tool'] and arguments[1:2] in [[tool] for tool in TOOLS]:
        arguments = arguments[1:]
    name = arguments[0] if arguments else ''
    logging.basicConfig(level=logging.WARNING, format='%(levelname)s: %(message)s')
    if name in PASS_ON:
        return run_module(name, arguments[1:])
    args = _parse(build_parser([name]), arguments)
    try:
        with _ending_in_order(), without_warnings(), redirect_stdout(cast(Any, Shown(sys.stdout))):
            return int(args.run(args))
    except (KeysegError, ModuleNotFoundError) as error:
        print(f'keyseg {name}: {_missing(error)}', file=sys.stderr)
        return ERROR
    except KeyboardInterrupt:
        again = '; the same command goes on where it stopped' if name in _RESUMED else ''
        print(f'\nkeyseg {name}: stopped, as asked{again}', file=sys.stderr)
        return INTERRUPTED


def _missing(error: Exception) -> Exception | str:
    """What an error says; of a package that is not installed, with the line that installs it.

    Raises:
        ModuleNotFoundError: it is none that an extra brings.
    """
    if not isinstance(error, ModuleNotFoundError):
        return error
    name = (error.name or '').partition('.')[0]
    extra = next((extra for extra, names in _EXTRAS.items() if name in names), '')
    if not extra:
        raise error
    return f"this needs {name}: pip install 'keyseg-mm[{extra}]'"


def _parse(parser: argparse.ArgumentParser, arguments: list[str]) -> argparse.Namespace:
    """Parse a command line. A CHECKPOINT that may be left out is also found behind options, where argparse loses it."""
    args, rest = parser.parse_known_args(arguments)
    if len(rest) == 1 and not rest[0].startswith('-') and getattr(args, 'checkpoint', '') is None:
        args.checkpoint = Path(rest.pop())
    if rest:
        parser.error(f'unrecognized arguments: {" ".join(rest)}')
    return args


@contextmanager
def _ending_in_order() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end a command like an error, so that it clears away what it has begun."""

    def end(number: int, frame: Any) -> NoReturn:
        for other in kept:
            signal.signal(other, signal.SIG_IGN)  # once is enough, and clearing away is not to be cut short
        raise SystemExit(128 + number)  # the exit status that shells give

    numbers = [getattr(signal, name) for name in ('SIGTERM', 'SIGHUP') if hasattr(signal, name)]
    is_ours = threading.current_thread() is threading.main_thread()  # handlers are a main thread's business
    kept = [number for number in numbers if is_ours and signal.getsignal(number) is signal.SIG_DFL]
    for number in kept:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in kept:
            signal.signal(number, signal.SIG_DFL)


def run_module(name: str, arguments: list[str]) -> int:
    """Run one of the host's tools with all its options; what ``tools/*.py`` call too."""
    from keyseg_mm.cli.host import run_any_tool, run_with_key

    try:
        with _ending_in_order():
            return run_any_tool(arguments) if name == 'tool' else run_with_key(name, arguments)
    except (KeysegError, ModuleNotFoundError) as error:
        print(f'keyseg {name}: {_missing(error)}', file=sys.stderr)
        return ERROR
