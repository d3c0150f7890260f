"""Attack a protected checkpoint in every known way, and report what somebody without the key really gets.

Attackers are given all that is public (code, config, stamp, the file), and photos from the config's training set in the
shares asked for; controls are what the same photos and the same time give without the file. Writes report.json and
report.html into OUT; open the latter in a browser. An interrupted audit goes on where it stopped when it is started
again with the same options.

examples:
  keyseg demo --out demo_out && \\
  keyseg audit demo_out/protected.py demo_out/train/iter_500.pth --key file:demo_out/demo.key --suite quick --out audit
  keyseg audit CONFIG CHECKPOINT --key file:my.key --public plain.pth --data-share 0.01,0.1 --out audit
  keyseg audit CONFIG CUSTOMER_A.pth --key file:a.key --second CUSTOMER_B.pth --out audit
  keyseg audit CONFIG CHECKPOINT --key file:my.key --transfer CONFIG_OF_ANOTHER_DATA_SET --out audit

The checkpoint may be of any method: feature maps encrypted by channel maps or block-wise, encrypted weights
(`keyseg lock --mode`), encrypted images (EncryptImage, `keyseg lock-patches`). Attacks that make no sense for it are
left out.

--transfer tries what the file is worth to a thief with a task of his own: is it a better start for his data set and
classes than none? CONFIG has the same backbone, neck and heads, with data sets and a number of classes of its own.

exit status: 0 no attack has an advantage, 1 an error, 4 the file helps an attacker (with --transfer also as a start
for the other data set), or the audit could not tell
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from keyseg_mm.cli.numbers import whole_number
from keyseg_mm.errors import KeysegError

HELPS = 4
INTERRUPTED = 130  # the exit status that shells give a command stopped with Ctrl-C
_SUITES = ('quick', 'standard', 'full')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``keyseg audit``."""
    parser.add_argument('config', type=Path, help='config of the model, protected or plain, with its data sets')
    parser.add_argument('checkpoint', type=Path, help='protected checkpoint')
    parser.add_argument('--key', required=True, metavar='LOC', help='locator of its key: only the referee gets it')
    parser.add_argument('--out', type=Path, required=True, metavar='DIR', help='folder for results and report')
    parser.add_argument(
        '--suite',
        choices=_SUITES,
        default='standard',
        help='how thorough: quick takes minutes on a small model, standard hours, full days (standard)',
    )
    parser.add_argument('--public', type=Path, metavar='FILE', help='public plain weights that an attacker may have')
    parser.add_argument('--second', type=Path, metavar='FILE', help="another customer's checkpoint or another release")
    parser.add_argument(
        '--transfer', type=Path, metavar='CONFIG', help='config of the same architecture over another data set'
    )
    parser.add_argument(
        '--data-share',
        type=shares,
        metavar='LIST',
        help='shares of the training photos that attackers have (quick 0.1, standard 0.01,0.1, full 0.01,0.05,0.1)',
    )
    parser.add_argument('--seed', type=whole_number(0), default=0, help='of everything drawn (0)')
    parser.add_argument('--device', help='where to compute, as cpu or cuda:0 (a GPU if there is one)')


def shares(text: str) -> tuple[float, ...]:
    """Parse a list of shares."""
    try:
        found = tuple(sorted({float(part) for part in text.split(',')}))
    except ValueError:
        found = ()
    if not found or not all(0 < share <= 1 for share in found):
        raise argparse.ArgumentTypeError('takes shares above 0 and at most 1, as 0.01,0.05,0.1')
    return found


def _device(wanted: str | None) -> str:
    """Where to compute, tried out.

    Raises:
        KeysegError: there is no such device.
    """
    import torch

    name = wanted or ('cuda' if torch.cuda.is_available() else 'cpu')
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError):
        raise KeysegError(f'--device {name}: torch cannot compute there; try cpu, or cuda:0') from None
    return name


def run(args: argparse.Namespace) -> int:
    """Audit, and say in short what came out."""
    from keyseg_mm.cli.keygen import ask_passphrase
    from keyseg_mm.keys.locator import locate_real

    key = locate_real(args.key, '--key', ask_passphrase)
    if args.out.exists() and not args.out.is_dir():
        raise KeysegError(f'{args.out} is a file; --out takes a folder')
    import keyseg_mm.mm  # noqa: F401 - the mends, before any config is read
    from keyseg_mm.audit.model.audit import Order, audit
    from keyseg_mm.audit.model.page import write_report

    order = Order(
        args.config,
        args.checkpoint,
        key,
        args.out,
        args.suite,
        args.public,
        args.second,
        args.data_share,
        args.seed,
        _device(args.device),
        bars=sys.stderr.isatty(),
        transfer=args.transfer,
    )
    try:
        report = audit(order, lambda text: print(text, flush=True))
    except KeyboardInterrupt:
        print('\nkeyseg audit: stopped, as asked; the same command goes on where it stopped', file=sys.stderr)
        return INTERRUPTED
    page = write_report(args.out)
    _conclude(report, page)
    summary = report['summary']
    elsewhere = summary['transfer'] is not None and summary['transfer']['level'] in ('helps', 'void')
    return 0 if summary['level'] == 'holds' and not elsewhere else HELPS


def _conclude(report: dict, page: Path) -> None:  # type: ignore[type-arg]
    """The headline, and where to read on."""
    summary = report['summary']
    print(f'\n{summary["verdict"]}\n')
    print(f'{"photos":>8}  {"best attack":<44} {"mIoU":>6}   {"best control":<36} {"mIoU":>6}  {"advantage":>9}')
    for row in summary['advantages']:
        attack, control = row['attack'], row['control']
        print(
            f'{row["photos"]:>8}  {attack["title"]:<44.44} {attack["miou"]:6.2f}   '
            f'{control["title"]:<36.36} {control["miou"]:6.2f}  {row["advantage"]:+9.2f}'
        )
    if summary['transfer'] is not None:
        _conclude_transfer(report)
    print(f'\nauthorised {report["authorised"]["miou"]:.2f}, constant guess {report["floor"]:.2f}; what to do:')
    for text in summary['change']:
        print(f'  {text}')
    for text in summary['warnings']:
        print(f'  note: {text}')
    print(f'\nread on in {page}')


def _conclude_transfer(report: dict) -> None:  # type: ignore[type-arg]
    """What came out on the other data set."""
    print(f'\n{report["summary"]["transfer"]["says"]}')
    for row in report['summary']['transfer']['rows']:
        figures = {name: row[name]['miou'] for name in ('attack', 'control', 'key_holder') if row[name]}
        figures['constant guess'] = report['transfer']['floor']
        words = '   '.join(f'{name.replace("_", " ")} {value:.2f}' for name, value in figures.items())
        print(f'{row["photos"]:>8}  {words}   advantage {row["advantage"]:+.2f} (noise {row["noise"]:.2f})')
