"""Compare the published ways of protecting a model on your own data: one command, one table, one page.

For each plain config, every method is trained or made from the plain checkpoint with the same data, schedule and seed,
by the host's own train and test tools; tested with the right key, without one and with wrong ones; timed; and attacked
by the audit. Where a method cannot be applied to a model, or fails, its row says why. Writes compare.json, compare.md
and compare.html into DIR, and below it a folder for each method, whose config.py trains and tests it by itself.

Every finished step is kept: the same command goes on where it stopped. Methods may be added then, other options may not
change. The plain model is always there, since all are measured by it.

With --jobs or --scheduler, trainings, tests and audits that do not depend on each other run at the same time; the
workers of a cluster need this package, and DIR, key and data under the same paths. Times are measured at the end, one
by one and on this machine: under load they would mean nothing.

examples:
  keyseg compare --list                                             the methods, and where they were published
  keyseg compare my_config.py --out cmp                             all of them; a training for each that needs one
  keyseg compare my_config.py --out cmp --plain trained.pth --methods 'lock-*' 'weights-*' patches    without training
  keyseg compare my_config.py --out cmp --methods image-shf feature-permutation lock-signed --suite none
  keyseg compare my_config.py --out cmp --jobs 4
  keyseg compare city.py ade.py --out cmp --cfg-options train_cfg.max_iters=2000 randomness.deterministic=True

exit status: 0 every method came to its end or cannot be applied, 1 an error, or a method failed
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keyseg_mm.cli.console import SUITES, add_jobs, print_table, whole_number
from keyseg_mm.errors import KeyFileError, KeysegError

if TYPE_CHECKING:
    from keyseg_mm.compare.order import Choices, Progress
    from keyseg_mm.compare.report import Report

_WIDE = 100  # columns of text
_CELL = 60  # columns of a table's cell


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``keyseg compare``."""
    parser.add_argument(
        'configs', nargs='*', type=Path, metavar='CONFIG', help='plain mmseg configs, data sets included'
    )
    parser.add_argument('--out', type=Path, metavar='DIR', help='folder for all that is made')
    parser.add_argument(
        '--methods', nargs='+', metavar='NAME', help="which, by name or pattern as 'lock-*' (default: all, see --list)"
    )
    parser.add_argument('--list', action='store_true', help='list the methods, and do nothing')
    parser.add_argument(
        '--blocks', nargs='+', type=whole_number(1), default=[4, 16], metavar='N', help='of the image methods (4 16)'
    )
    parser.add_argument(
        '--key', metavar='LOC', help='locator of the key (default: DIR/compare.key, made if it is not there)'
    )
    parser.add_argument('--suite', choices=('none', *SUITES), default='quick', help='of the audit (quick)')
    parser.add_argument('--seed', type=whole_number(0), default=0, help='of training and audit, the same for all (0)')
    parser.add_argument('--wrong-keys', type=whole_number(0), default=3, metavar='N', help='how many to test with (3)')
    parser.add_argument(
        '--plain', type=Path, metavar='FILE', help='trained plain checkpoint of the first config, to train none'
    )
    add_jobs(parser, 'steps')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action='extend',
        metavar='NAME=VALUE',
        help="put into every config, as mmseg's tools take them",
    )


def run(args: argparse.Namespace) -> int:
    """Compare, and show what came out."""
    from keyseg_mm.compare.methods import pick

    if args.list:
        _list(args.blocks)
        return 0
    if not args.configs or args.out is None:
        raise KeysegError('give one or more plain configs and --out DIR, or --list to see the methods')
    return _compare(args, pick(args.methods, args.blocks))


def _list(blocks: list[int]) -> None:
    from keyseg_mm.compare.methods import expanded

    for name, method in expanded(blocks).items():
        print(f'{name}\n    {method.title}; {method.source}')
        print(textwrap.fill(method.does, _WIDE, initial_indent=' ' * 4, subsequent_indent=' ' * 4))


def _compare(args: argparse.Namespace, methods: list[Any]) -> int:
    import keyseg_mm.mm  # noqa: F401 - the mends, before any config is read
    from keyseg_mm.audit.engine.executor import make_executor
    from keyseg_mm.compare.report import Report
    from keyseg_mm.compare.rows import FAILED
    from keyseg_mm.compare.run import Subject, compare

    choices, folders = _begin(args)
    given = [args.plain, *[None] * len(folders)]
    subjects = [Subject(config, folder, choices, plain) for (folder, config), plain in zip(folders.items(), given)]
    with make_executor(args.jobs, args.scheduler) as executor, _progress() as progress:
        compare(subjects, methods, executor, progress)
    report = Report.of(subjects, methods)
    _show(report, report.write(args.out, subjects))
    failed = [row.title for figures in report.subjects for row in figures.rows if row.status == FAILED]
    if failed:
        print(f'keyseg compare: failed: {", ".join(failed)}; the same command tries them again', file=sys.stderr)
    return 1 if failed else 0


def _begin(args: argparse.Namespace) -> tuple[Choices, dict[Path, Path]]:
    """Check all that was asked for; returns the choices, and the configs by the folders that are made for them."""
    from keyseg_mm.compare.configs import parse_options, read, refuse_protected
    from keyseg_mm.compare.order import KEY, Choices, begin, fingerprint
    from keyseg_mm.keys.locator import locate

    locator = _absolute(args.key) if args.key else f'file:{(args.out / KEY).resolve()}'
    if args.key:
        found = locate(locator)  # each step follows it anew: standard input would be read up by the first
        if found.key is None or found.deliberate:
            raise KeyFileError('--key takes the locator of a real key, as file:PATH')
    if args.plain is not None and not args.plain.is_file():
        raise KeysegError(f'--plain {args.plain}: no such file')
    options = parse_options(args.cfg_options or [])
    cfgs = {config: read(config, options) for config in args.configs}
    for config, cfg in cfgs.items():
        refuse_protected(config, cfg)
    texts = {config: cfg.pretty_text for config, cfg in cfgs.items()}
    asked = {
        'configs': [str(config.resolve()) for config in args.configs],
        'contents of the configs': [fingerprint(text) for text in texts.values()],
        '--cfg-options': args.cfg_options or [],
        '--key': locator,
        '--plain': str(args.plain.resolve()) if args.plain else None,
        '--seed': args.seed,
        '--suite': args.suite,
        '--wrong-keys': args.wrong_keys,
    }
    begin(args.out, asked)
    if not args.key:
        _own_key(args.out / KEY)
    folders: dict[Path, Path] = {}
    for config in texts:
        name, number = config.stem, 1
        while args.out / name in folders:
            number += 1
            name = f'{config.stem}-{number}'
        folders[args.out / name] = config
    return Choices(locator, args.suite, args.seed, args.wrong_keys, options, __package__), folders


def _absolute(locator: str) -> str:
    """A locator that means the same file wherever it is followed from."""
    from keyseg_mm.keys.locator import refuse_secret

    refuse_secret(locator)
    scheme, _, path = locator.partition(':')
    return f'file:{Path(path).expanduser().resolve()}' if scheme == 'file' and path else locator


def _own_key(path: Path) -> None:
    """Make the comparison's own key, where it is not there yet."""
    from keyseg_mm.keys.key import SecretKey
    from keyseg_mm.keys.keyfile import read_key_file, write_key_file

    if path.exists():
        read_key_file(path)
        return
    write_key_file(path, SecretKey.generate(), comment='made by keyseg compare')
    print(f'made {path}, the key of this comparison')


@contextlib.contextmanager
def _progress() -> Iterator[Progress]:
    """Lines on the screen, and under them a bar where somebody watches."""
    from tqdm import tqdm

    from keyseg_mm.compare.order import Progress

    with tqdm(unit='step', disable=not sys.stderr.isatty(), leave=False, dynamic_ncols=True) as bar:

        def say(text: str) -> None:
            with tqdm.external_write_mode(file=sys.stdout):
                print(text, flush=True)

        def begin(steps: int, doing: str) -> None:
            bar.reset(steps)
            bar.set_description_str(doing)

        yield Progress(say, begin, bar.update, bar.set_postfix_str)


def _show(report: Report, page: Path) -> None:
    """The tables, what they come to, and where to read on."""
    from keyseg_mm.compare.table import HEAD, cells

    for figures in report.subjects:
        print(f'\n{figures.name}, {figures.photos} test photos\n')
        rows = [cells(figures, row) for row in figures.rows]
        print_table(HEAD, [[textwrap.shorten(cell, _CELL, placeholder=' ...') for cell in row] for row in rows])
        for row in figures.rows:
            if row.why:
                print(f'{row.title}: {row.status}: {row.why}')
    print(f'\n{textwrap.fill(report.verdict, _WIDE)}\n\nread on in {page}')
