#!/usr/bin/env python
"""Restore encrypted images of real photos: every method and block size, by `keyseg audit --images`.

    python benchmarks/accuracy/restoring.py --data DATA --out OUT [--suite quick] [--layout cityscapes ade20k]

DATA holds cityscapes/ and ade/ADEChallengeData2016/, laid out as mmseg's data set configs expect. Writes one config and
one report for each method and block into OUT, and prints a table: for each attacker the best attack's SSIM and PSNR,
and the best control's SSIM. Finished attacks in OUT are not run again. The key is made in OUT.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
from pathlib import Path

from run import LAYOUTS
from tables import add_option, write_table

from keyseg_mm import SecretKey, write_key_file
from keyseg_mm.audit.engine.attack import IMAGE_SUITES
from keyseg_mm.audit.images.audit import Gain
from keyseg_mm.audit.images.referee import ImageScore
from keyseg_mm.audit.report.page import Summary

METHODS = ('SHF', 'NP', 'FFX')
BLOCKS = (4, 16)
COLUMNS = ('method, block', 'ciphers', 'best control, without and with photos', 'encrypted images alone')

CONFIG = """\
_base_ = ['mmseg::_base_/datasets/{layout}.py', 'mmseg::_base_/default_runtime.py']
encrypt = dict(type='keyseg_mm.EncryptImage', method='{method}', block={block}, key='file:{key}')
test_pipeline = [dict(type='LoadImageFromFile'), encrypt, dict(type='PackSegInputs')]
train_dataloader = dict(dataset=dict(data_root='{root}'))
test_dataloader = dict(dataset=dict(data_root='{root}', pipeline=test_pipeline))
"""


def shown(score: ImageScore) -> str:
    """How near an attack came."""
    return '**exact**' if score.exact == 1 else f'{score.ssim:.2f} ({score.psnr:.1f} dB)'


def cells(summary: Summary[Gain]) -> list[str]:
    """The best controls, and for each attacker the best attack."""
    controls = (f'{row.control.score.ssim:.2f} ({row.control.about.name})' for row in summary.advantages[:2])
    return [', '.join(controls), *(f'{shown(row.attack.score)}, {row.attack.about.name}' for row in summary.advantages)]


def main() -> None:
    """Audit, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', type=Path, required=True)
    parser.add_argument('--out', type=Path, required=True)
    parser.add_argument('--suite', default='quick')
    parser.add_argument('--layout', nargs='+', choices=LAYOUTS, default=['cityscapes'])
    parser.add_argument('--methods', nargs='+', choices=METHODS, default=list(METHODS))
    parser.add_argument('--blocks', nargs='+', type=int, default=list(BLOCKS))
    parser.add_argument('--photos', type=int)
    add_option(parser)
    args = parser.parse_args()
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    key_file = out / 'restoring.key'
    if not key_file.exists():
        write_key_file(key_file, SecretKey.generate())
    import keyseg_mm.mm  # noqa: F401 - the mends, before any config is read
    from keyseg_mm.audit.engine.audit import audit
    from keyseg_mm.audit.images.audit import ImageOrder

    limits = IMAGE_SUITES[args.suite]
    if args.photos:
        limits = dataclasses.replace(limits, scored=args.photos, photos=args.photos)
    rows = []
    for layout, method, block in itertools.product(args.layout, args.methods, args.blocks):
        folder = out / f'{layout}-{method}-{block}-{args.suite}' / f'photos-{args.photos or "all"}'
        folder.mkdir(parents=True, exist_ok=True)
        root = (args.data / LAYOUTS[layout]).resolve()
        config = folder / 'config.py'
        config.write_text(CONFIG.format(layout=layout, method=method, block=block, key=key_file, root=root))
        how = {'suite': args.suite, 'limits': limits, 'bars': False}
        report, summary = audit(ImageOrder(config=config, key=f'file:{key_file}', out=folder, **how))
        where = [layout] if len(args.layout) > 1 else []
        rows.append([', '.join([*where, method, str(block)]), f'2^{report.ciphers:.0f}', *cells(summary)])
        print(f'{"; ".join(rows[-1])}; {report.seconds / 60:.1f} minutes', flush=True)
    write_table(args.table, [*COLUMNS, f'and {limits.photos} plain photos', 'and one known pair'], rows)


if __name__ == '__main__':
    main()
