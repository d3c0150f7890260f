"""Compare the published ways of protecting a model on your own data: one command, one table, one page.

Every method is trained or made from the plain checkpoint with the same data, schedule and seed, by the host's own train
and test tools; tested with the right key, without one and with wrong ones; and attacked by the audit. Where a method
cannot be applied to a model, or fails, its row says why. Writes compare.json and compare.html into DIR, and below it a
folder for each method, whose config.py trains and tests it by itself.

Every finished step is kept: the same command goes on where it stopped. Methods may be added then, other options may not
change. The plain model is always there, since all are measured by it.

With --jobs or --scheduler, methods that do not depend on each other are tried at the same time; the workers of a
cluster need this package, and DIR and data under the same paths. Seconds mean little under such load. The key is drawn
for the comparison, and lies in DIR.

examples:
  keyseg compare --list                                             the methods, and where they were published
  keyseg compare my_config.py --out cmp                             all of them; a training for each that needs one
  keyseg compare my_config.py --out cmp --plain trained.pth --methods 'lock-*' 'weights-*' patches    without training
  keyseg compare my_config.py --out cmp --methods image-shf-8 feature-permutation lock-signed --suite none
  keyseg compare my_config.py --out cmp --jobs 4
  keyseg compare my_config.py --out cmp --cfg-options train_cfg.max_iters=2000 randomness.deterministic=True

exit status: 0 every method came to its end or cannot be applied, 1 an error, or a method failed
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from pathlib import Path

from keyseg_mm.cli.console import SUITES, add_jobs, print_table, say, whole_number
from keyseg_mm.errors import KeysegError

_CELL = 60  # columns of a table's cell


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``keyseg compare``."""
    add, number = parser.add_argument, whole_number
    add('config', nargs='?', type=Path, metavar='CONFIG', help='plain mmseg config, data sets included')
    add('--out', type=Path, metavar='DIR', help='folder for all that is made')
    add('--methods', nargs='+', metavar='NAME', help="which, by name or pattern as 'lock-*' (default: all, see --list)")
    add('--list', action='store_true', help='list the methods, and do nothing')
    add('--suite', choices=('none', *SUITES), default='quick', help='of the audit (quick)')
    add('--seed', type=number(0), default=0, help='of training and audit, the same for all (0)')
    add('--wrong-keys', type=number(0), default=3, metavar='N', help='how many to test with (3)')
    add('--plain', type=Path, metavar='FILE', help='trained plain checkpoint of the config, not to train one')
    add_jobs(parser, 'methods')
    add('--cfg-options', nargs='+', action='extend', default=[], metavar='NAME=VALUE',
        help="put into the config, as mmseg's tools take them")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Compare, and show what came out."""
    from keyseg_mm.compare.methods import METHODS

    if args.list:
        for name, method in METHODS.items():
            print(f'{name}\n    {method.title}; {method.source}')
            print(textwrap.fill(method.does, 100, initial_indent=' ' * 4, subsequent_indent=' ' * 4))
        return 0
    if args.config is None or args.out is None:
        raise KeysegError('give a plain config and --out DIR, or --list to see the methods')
    return _compare(args)


def _compare(args: argparse.Namespace) -> int:
    import keyseg_mm.mm  # noqa: F401 - the mends, before any config is read
    from keyseg_mm.audit.engine.executor import make_executor
    from keyseg_mm.compare.configs import read_plain
    from keyseg_mm.compare.methods import FAILED, Options, pick
    from keyseg_mm.compare.run import HEAD, begin, cells, compare, locator_of, write

    methods = pick(args.methods)
    if args.plain is not None and not args.plain.is_file():
        raise KeysegError(f'--plain {args.plain}: no such file; it takes a trained plain checkpoint')
    plain = str(args.plain.resolve()) if args.plain else None
    config, key = str(args.config.resolve()), locator_of(args.out)
    options = Options(config, args.cfg_options, plain, key, args.seed, args.suite, args.wrong_keys)
    cfg = read_plain(args.config, args.cfg_options)
    begin(args.out, options, cfg)
    with make_executor(args.jobs, args.scheduler) as executor:
        found = compare(args.out, cfg, options, methods, __package__, executor, say)
    path = write(args.out, found)
    rows = [cells(found, row) for row in found.rows]
    print_table(HEAD, [[textwrap.shorten(cell, _CELL, placeholder=' ...') for cell in row] for row in rows])
    for row in found.rows:
        if row.why:
            print(f'{row.title}: {row.status}: {row.why}')
    print(f'\nread on in {path}')
    failed = [row.title for row in found.rows if row.status == FAILED]
    if failed:
        print(f'keyseg compare: failed: {", ".join(failed)}; the same command tries them again', file=sys.stderr)
    return 1 if failed else 0
