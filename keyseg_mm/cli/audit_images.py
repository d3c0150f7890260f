"""Attack encrypted images in every known way, and report what can be seen of the plain ones without the key.

The images are the test data of CONFIG, encrypted as its test pipeline says (keyseg_mm.EncryptImage: SHF, NP or FFX), or
as the stamp of --checkpoint says, for a model of `keyseg lock-patches`. Attackers see the encrypted images; then also
plain photos of their own, from the training data; then also a few of those encrypted with the key. The key itself only
the referee has. Restored images are scored by SSIM (1: the plain image) and PSNR, against what is to be had without
breaking anything. Writes report.json and report.html into OUT; open the latter in a browser. An interrupted audit goes
on where it stopped when it is started again with the same options.

What to expect: every block of every image is encrypted alike, so many images tell much. This audit says how much.

examples:
  keyseg audit-images CONFIG --key file:my.key --suite quick --out seen       # CONFIG has keyseg_mm.EncryptImage in it
  keyseg audit-images CONFIG --checkpoint locked.pth --key file:my.key --out seen       # of `keyseg lock-patches`
  keyseg audit-images CONFIG --key file:my.key --photos 4 --out few           # no more than four images under this key

exit status: 0 no attack without known pairs restores anything, 1 an error, 4 one does, or the audit could not tell
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from keyseg_mm.cli.audit import HELPS, INTERRUPTED
from keyseg_mm.cli.numbers import whole_number
from keyseg_mm.errors import KeysegError

_SUITES = ('quick', 'standard', 'full')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``keyseg audit-images``."""
    parser.add_argument('config', type=Path, help='config with its data sets; its test pipeline encrypts')
    parser.add_argument(
        '--checkpoint', type=Path, metavar='FILE', help='a model whose stamp says how images are encrypted'
    )
    parser.add_argument('--key', required=True, metavar='LOC', help='locator of the key: only the referee gets it')
    parser.add_argument('--out', type=Path, required=True, metavar='DIR', help='folder for results and report')
    parser.add_argument(
        '--suite',
        choices=_SUITES,
        default='standard',
        help='how thorough: quick takes two minutes on small images, standard an hour, full many (standard)',
    )
    parser.add_argument(
        '--photos',
        type=whole_number(1),
        metavar='N',
        help='images to attack, and photos of the attacker, N of each at most',
    )
    parser.add_argument('--seed', type=whole_number(0), default=0, metavar='N', help='of everything drawn (0)')


def run(args: argparse.Namespace) -> int:
    """Audit, and say in short what came out."""
    from keyseg_mm.cli.keygen import ask_passphrase
    from keyseg_mm.keys.locator import locate_real

    key = locate_real(args.key, '--key', ask_passphrase)
    if args.out.exists() and not args.out.is_dir():
        raise KeysegError(f'{args.out} is a file; --out takes a folder')
    import keyseg_mm.mm  # noqa: F401 - the mends, before any config is read
    from keyseg_mm.audit.images.audit import ImageOrder, audit_images
    from keyseg_mm.audit.images.page import write_report

    bars = sys.stderr.isatty()
    order = ImageOrder(args.config, key, args.out, args.checkpoint, args.suite, args.photos, args.seed, bars)
    try:
        report = audit_images(order, lambda text: print(text, flush=True))
    except KeyboardInterrupt:
        print('\nkeyseg audit-images: stopped, as asked; the same command goes on where it stopped', file=sys.stderr)
        return INTERRUPTED
    _conclude(report, write_report(args.out))
    return 0 if report['summary']['level'] == 'holds' else HELPS


def _conclude(report: dict[str, Any], page: Path) -> None:
    """The headline, and where to read on."""
    from keyseg_mm.audit.images.summary import decibels

    summary = report['summary']
    print(f'\n{summary["verdict"]}\n')
    print(f'{"the attacker has":<24} {"best attack":<46} {"SSIM":>5} {"PSNR":>9}   {"best control":<28} {"SSIM":>5}')
    for row in summary['advantages']:
        attack, control = row['attack'], row['control']
        print(
            f'{row["title"]:<24.24} {attack["title"]:<46.46} {attack["ssim"]:5.2f} {decibels(attack["psnr"]):>9}   '
            f'{control["title"]:<28.28} {control["ssim"]:5.2f}'
        )
    print(f'\nthere are 2^{report["key_spaces"][0]["ciphers"]:.0f} such ciphers; what to do:')
    for text in summary['change']:
        print(f'  {text}')
    for text in summary['warnings']:
        print(f'  note: {text}')
    print(f'\nread on in {page}')
