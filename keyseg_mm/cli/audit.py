"""Attack a protected checkpoint, or encrypted images, in every known way, and report what an attacker really gets.

With CHECKPOINT: what is the file worth to somebody without the key? Attackers are given all that is public (code,
config, stamp, the file), and photos from the config's training set; controls are what the same photos and the same time
give without the file. The checkpoint may be of any scheme of `keyseg lock`, trained with the key, or trained on
encrypted images.

Without CHECKPOINT, or with --images: what can be seen of the plain images without the key? The images are the test data
of CONFIG, encrypted as its test pipeline says (keyseg_mm.EncryptImage) or as CHECKPOINT says. Attackers see the
encrypted images; then also photos of their own, from the training data; then also one of those encrypted with the key.
What they restore is scored by SSIM (1: the plain image) and PSNR.

Writes report.json and report.html into OUT. An interrupted audit goes on where it stopped when it is started again with
the same options.

examples:
  keyseg audit CONFIG CHECKPOINT --key file:my.key --public plain.pth --data-share 0.01,0.1 --out audit
  keyseg audit CONFIG --key file:my.key --suite quick --out seen        # CONFIG has keyseg_mm.EncryptImage in it
  keyseg audit CONFIG locked.pth --images --key file:my.key --out seen  # as the stamp of locked.pth says

exit status: 0 no attack has an advantage (on images: none without known pairs restores anything), 1 an error, 4 the
file helps an attacker, an attack restores images, or the audit could not tell
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keyseg_mm.cli.console import SUITES, add_jobs, add_key, print_table, real_key, say, whole_number
from keyseg_mm.cli.status import HELPS
from keyseg_mm.errors import KeysegError

if TYPE_CHECKING:
    from keyseg_mm.audit.engine.audit import Order

_MODEL = ('public', 'second', 'data_share', 'device')  # options of its audit
_WIDE = 44  # characters of a title


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``keyseg audit``."""
    add, of_model = parser.add_argument, parser.add_argument_group('of a model').add_argument
    add('config', type=Path, help='config of the model, protected or plain, with its data sets')
    add('checkpoint', nargs='?', type=Path, help='protected checkpoint')
    add_key(parser, 'locator of the key: only the referee gets it')
    add('--out', type=Path, required=True, metavar='DIR', help='folder for results and report')
    thorough = 'how thorough: quick takes minutes on a small model, standard hours, full days (standard)'
    add('--suite', choices=SUITES, default='standard', help=thorough)
    add('--seed', type=whole_number(0), default=0, metavar='N', help='of everything drawn (0)')
    add('--images', action='store_true', help='audit the encrypted images, not CHECKPOINT')
    add_jobs(parser, 'attacks')
    of_model('--public', type=Path, metavar='FILE', help='public plain weights that an attacker may have')
    of_model('--second', type=Path, metavar='FILE', help="another customer's checkpoint or another release")
    given = 'shares of the training photos that attackers have (quick 0.1, standard 0.01,0.1, full 0.01,0.05,0.1)'
    of_model('--data-share', type=shares, metavar='LIST', help=given)
    of_model('--device', help='where to compute, as cpu or cuda:0 (a GPU if there is one)')


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
    for name in _MODEL if of_images else ():
        if getattr(args, name) is not None:
            option = name.replace('_', '-')
            raise KeysegError(f'--{option} goes with the audit of a model: give CHECKPOINT, without --images')
    key = real_key(args.key)
    if args.out.exists() and not args.out.is_dir():
        raise KeysegError(f'{args.out} is a file; --out takes a folder')
    import keyseg_mm.mm  # noqa: F401 - the mends, before any config is read
    from keyseg_mm.audit.engine.audit import audit
    from keyseg_mm.audit.engine.executor import make_executor

    asked = args.jobs > 1 or args.scheduler is not None
    with make_executor(args.jobs, args.scheduler) if asked else contextlib.nullcontext() as executor:
        _, summary = audit(_order(args, of_images), key, executor, say)
    print(f'\n{summary.verdict}\n')
    cells = []
    for row in summary.advantages:
        sides = [text for one in (row.attack, row.control) for text in (one.about.title[:_WIDE], str(one.score))]
        cells.append((row.title, *sides, f'{row.advantage:+.2f}'))
    print_table(('the attacker has', 'best attack', '', 'best control', '', 'advantage'), cells)
    print('\nwhat to do:', *summary.change, sep='\n  ')
    for text in summary.warnings:
        print(f'  note: {text}')
    print(f'\nread on in {args.out / "report.html"}')
    return 0 if summary.level == 'holds' else HELPS


def _order(args: argparse.Namespace, of_images: bool) -> Order:
    """What the options ask for."""
    from keyseg_mm.audit.images.audit import ImageOrder
    from keyseg_mm.audit.model.audit import ModelOrder

    names = ('config', 'checkpoint', 'key', 'out', 'suite', 'seed')
    both: dict[str, Any] = {'bars': sys.stderr.isatty(), **{name: getattr(args, name) for name in names}}
    if of_images:
        return ImageOrder(**both)
    named = {'public': args.public, 'second': args.second, 'shares': args.data_share}
    return ModelOrder(**both, **named, device=_device(args.device))


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
