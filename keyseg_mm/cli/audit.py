"""Attack a protected checkpoint, or encrypted images, in every known way, and report what an attacker really gets.

With CHECKPOINT: what is the file worth to somebody without the key? Attackers are given all that is public (code,
config, stamp, the file), and photos from the config's training set in the shares asked for; controls are what the same
photos and the same time give without the file. The checkpoint may be of any scheme of `keyseg lock`, trained with the
key, or trained on encrypted images. Attacks that make no sense for it are left out. --transfer tries what the file is
worth to a thief with a task of their own: is it a better start for their data set and classes than none?

Without CHECKPOINT, or with --images: what can be seen of the plain images without the key? The images are the test data
of CONFIG, encrypted as its test pipeline says (keyseg_mm.EncryptImage) or as CHECKPOINT says. Attackers see the
encrypted images; then also plain photos of their own, from the training data; then also a few of those encrypted with
the key. Restored images are scored by SSIM (1: the plain image) and PSNR, against what is to be had without breaking
anything. Every block of every image is encrypted alike, so many images tell much.

Writes report.json and report.html into OUT; open the latter in a browser. An interrupted audit goes on where it stopped
when it is started again with the same options.

examples:
  keyseg demo --out demo_out && \\
  keyseg audit demo_out/protected.py demo_out/train/iter_500.pth --key file:demo_out/demo.key --suite quick --out audit
  keyseg audit CONFIG CHECKPOINT --key file:my.key --public plain.pth --data-share 0.01,0.1 --out audit
  keyseg audit CONFIG CUSTOMER_A.pth --key file:a.key --second CUSTOMER_B.pth --out audit
  keyseg audit CONFIG CHECKPOINT --key file:my.key --transfer CONFIG_OF_ANOTHER_DATA_SET --out audit
  keyseg audit CONFIG --key file:my.key --suite quick --out seen        # CONFIG has keyseg_mm.EncryptImage in it
  keyseg audit CONFIG locked.pth --images --key file:my.key --out seen  # as the stamp of locked.pth says
  keyseg audit CONFIG --key file:my.key --photos 4 --out few            # no more than four images under this key

exit status: 0 no attack has an advantage (on images: none without known pairs restores anything), 1 an error, 4 the
file helps an attacker (with --transfer also as a start for the other data set), an attack restores images, or the audit
could not tell
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keyseg_mm.cli.console import SUITES, add_jobs, add_key, print_table, real_key, say, whole_number
from keyseg_mm.errors import KeysegError

if TYPE_CHECKING:
    from keyseg_mm.audit.engine.executor import Executor
    from keyseg_mm.audit.model.summary import TransferSummary
    from keyseg_mm.audit.report.summary import Summary
    from keyseg_mm.keys.key import SecretKey

HELPS = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``keyseg audit``."""
    parser.add_argument('config', type=Path, help='config of the model, protected or plain, with its data sets')
    parser.add_argument('checkpoint', nargs='?', type=Path, help='protected checkpoint')
    add_key(parser, 'locator of the key: only the referee gets it')
    parser.add_argument('--out', type=Path, required=True, metavar='DIR', help='folder for results and report')
    parser.add_argument(
        '--suite',
        choices=SUITES,
        default='standard',
        help='how thorough: quick takes minutes on a small model, standard hours, full days (standard)',
    )
    parser.add_argument('--seed', type=whole_number(0), default=0, metavar='N', help='of everything drawn (0)')
    add_jobs(parser, 'attacks')
    model = parser.add_argument_group('of a model')
    model.add_argument('--public', type=Path, metavar='FILE', help='public plain weights that an attacker may have')
    model.add_argument('--second', type=Path, metavar='FILE', help="another customer's checkpoint or another release")
    model.add_argument(
        '--transfer', type=Path, metavar='CONFIG', help='config of the same architecture over another data set'
    )
    model.add_argument(
        '--data-share',
        type=shares,
        metavar='LIST',
        help='shares of the training photos that attackers have (quick 0.1, standard 0.01,0.1, full 0.01,0.05,0.1)',
    )
    model.add_argument('--device', help='where to compute, as cpu or cuda:0 (a GPU if there is one)')
    images = parser.add_argument_group('of images')
    images.add_argument('--images', action='store_true', help='audit the encrypted images, not CHECKPOINT')
    images.add_argument(
        '--photos', type=whole_number(1), metavar='N', help='images to attack, and photos of the attacker, N at most'
    )


def shares(text: str) -> tuple[float, ...]:
    """Parse a list of shares."""
    try:
        found = tuple(sorted({float(part) for part in text.split(',')}))
    except ValueError:
        found = ()
    if not found or not all(0 < share <= 1 for share in found):
        raise argparse.ArgumentTypeError('takes shares above 0 and at most 1, as 0.01,0.05,0.1')
    return found


def run(args: argparse.Namespace) -> int:
    """Audit, and say in short what came out."""
    of_images = args.images or args.checkpoint is None
    others = ('public', 'second', 'transfer', 'data_share', 'device') if of_images else ('photos',)
    for name in others:
        if getattr(args, name) is not None:
            what = 'a model: give CHECKPOINT, without --images' if of_images else 'encrypted images: give --images'
            raise KeysegError(f'--{name.replace("_", "-")} goes with the audit of {what}')
    key = real_key(args.key)
    if args.out.exists() and not args.out.is_dir():
        raise KeysegError(f'{args.out} is a file; --out takes a folder')
    import keyseg_mm.mm  # noqa: F401 - the mends, before any config is read

    return _audit_images(args, key) if of_images else _audit_model(args, key)


def _audit_model(args: argparse.Namespace, key: SecretKey) -> int:
    from keyseg_mm.audit.model.audit import ModelOrder, audit
    from keyseg_mm.audit.model.summary import summarise

    order = ModelOrder(
        **_common(args),
        checkpoint=args.checkpoint,
        public=args.public,
        second=args.second,
        shares=args.data_share,
        device=_device(args.device),
        transfer=args.transfer,
    )
    with _executor(args) as executor:
        report = audit(order, key, executor, say)
    summary = summarise(report)
    rows = [
        (
            f'{row.photos:>6}',
            f'{row.attack.about.title:.44}',
            f'{row.attack.score.miou:5.2f}',
            f'{row.control.about.title:.36}',
            f'{row.control.score.miou:5.2f}',
            f'{row.advantage:+9.2f}',
        )
        for row in summary.advantages
    ]
    print(f'\n{summary.verdict}\n')
    print_table(('photos', 'best attack', ' mIoU', 'best control', ' mIoU', 'advantage'), rows)
    if report.transfer and summary.transfer:
        _show_transfer(summary.transfer, report.transfer.floor)
    _conclude(summary, f'authorised {report.authorised.miou:.2f}, constant guess {report.floor:.2f}', args.out)
    elsewhere = summary.transfer is not None and summary.transfer.level in ('helps', 'void')
    return 0 if summary.level == 'holds' and not elsewhere else HELPS


def _show_transfer(summary: TransferSummary, floor: float) -> None:
    """What came out on the other data set."""
    print(f'\n{summary.says}')
    for row in summary.rows:
        named = {'attack': row.attack, 'control': row.control, 'key holder': row.key_holder}
        figures = {name: best.score.miou for name, best in named.items() if best} | {'constant guess': floor}
        words = '   '.join(f'{name} {value:.2f}' for name, value in figures.items())
        print(f'{row.photos:>8}  {words}   advantage {row.advantage:+.2f} (noise {row.noise:.2f})')


def _audit_images(args: argparse.Namespace, key: SecretKey) -> int:
    from keyseg_mm.audit.images.audit import ImageOrder, audit_images
    from keyseg_mm.audit.images.summary import summarise
    from keyseg_mm.audit.report.page import decibels

    order = ImageOrder(**_common(args), checkpoint=args.checkpoint, photos=args.photos)
    with _executor(args) as executor:
        report = audit_images(order, key, executor, say)
    summary = summarise(report)
    rows = [
        (
            row.title,
            f'{row.attack.about.title:.46}',
            f'{row.attack.score.ssim:5.2f}',
            f'{decibels(row.attack.score.psnr):>9}',
            f'{row.control.about.title:.28}',
            f'{row.control.score.ssim:5.2f}',
        )
        for row in summary.advantages
    ]
    print(f'\n{summary.verdict}\n')
    print_table(('the attacker has', 'best attack', ' SSIM', '     PSNR', 'best control', ' SSIM'), rows)
    _conclude(summary, f'there are 2^{report.key_spaces[0].ciphers:.0f} such ciphers', args.out)
    return 0 if summary.level == 'holds' else HELPS


def _common(args: argparse.Namespace) -> dict[str, Any]:
    """What orders of both audits have in common."""
    given = {'config': args.config, 'key': args.key, 'out': args.out, 'suite': args.suite, 'seed': args.seed}
    return {**given, 'bars': sys.stderr.isatty()}


def _executor(args: argparse.Namespace) -> contextlib.AbstractContextManager[Executor | None]:
    """What runs attacks side by side; None where that was not asked for."""
    from keyseg_mm.audit.engine.executor import make_executor

    asked = args.jobs > 1 or args.scheduler is not None
    return make_executor(args.jobs, args.scheduler) if asked else contextlib.nullcontext()


def _conclude(summary: Summary[Any], measured: str, out: Path) -> None:
    """What to do, and where to read on."""
    print(f'\n{measured}; what to do:')
    for text in summary.change:
        print(f'  {text}')
    for text in summary.warnings:
        print(f'  note: {text}')
    print(f'\nread on in {out / "report.html"}')


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
