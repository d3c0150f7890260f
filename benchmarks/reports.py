#!/usr/bin/env python
"""The tables of what three commands write as JSON: `keyseg compare`, `keyseg demo` and `keyseg audit`.

    python benchmarks/reports.py compare OUT/compare.json [MORE/compare.json ...] [--table FILE]
    python benchmarks/reports.py demo demo_out/results.json [--table FILE]
    python benchmarks/reports.py audit audit/report.json [--table FILE]

Rows of a second comparison, and of further ones, begin with the name of its folder.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tables import add_option, write_table

from keyseg_mm.compare.run import HEAD, Comparison, cells
from keyseg_mm.compare.trial import Row
from keyseg_mm.demo.run import BARE, NONE, RIGHT, WRONG

WHO = {
    RIGHT: 'the sealed file with its key',
    NONE: 'the sealed file without a key',
    BARE: 'opened weights without their tables',
    WRONG: 'opened weights with wrong tables',
}
OTHER = ['another key', 'refused', '']  # a demo that ended has seen it


def compare(*files: Path) -> Iterator[list[str]]:
    """Heads, and a row for each method of each comparison."""
    yield list(HEAD)
    for file in files:
        said = json.loads(file.read_text(encoding='utf-8'))
        found = Comparison(said['options'], said['methods'], said['floor'], [Row(**row) for row in said['rows']])
        for row in found.rows:
            title, *figures = cells(found, row)
            yield [title if file == files[0] else f'{file.resolve().parent.name}, {title}', *figures]


def demo(file: Path) -> Iterator[list[str]]:
    """Heads, and a row for each who tests, with the floor."""
    said: dict[str, Any] = json.loads(file.read_text(encoding='utf-8'))
    floor = said['floor']
    yield ['who', 'mIoU', 'times the floor']
    for who, title in WHO.items():
        found = {key.partition(': ')[2]: miou for key, miou in said['mIoU'].items() if key.startswith(f'{who}: ')}
        keys = ', '.join(['', *(f'`{key}`' for key in found)]) if who == WRONG else ''
        mious, times = (', '.join(f'{v / d:.{n}f}' for v in found.values()) for d, n in ((1, 2), (floor, 1)))
        yield [title + keys, mious, times]
        if who == NONE:
            yield OTHER
    yield ['constant guess (the floor)', f'{floor:.2f}', '1.0']


def audit(file: Path) -> Iterator[list[str]]:
    """Heads, and a row for each attacker."""
    yield ['attacker', 'best attack', 'best control', 'advantage']
    for gain in json.loads(file.read_text(encoding='utf-8'))['summary']['advantages']:
        best = (f'{gain[side]["score"]["miou"]:.2f}, {gain[side]["about"]["title"]}' for side in ('attack', 'control'))
        has = f'{gain["photos"]} scenes with labels' if gain['photos'] else 'no photos'
        yield [has, *best, f'{gain["advantage"]:+.2f}']


REPORTS = {'compare': (compare, 'l' * len(HEAD)), 'demo': (demo, 'lll'), 'audit': (audit, 'lllr')}


def main() -> None:
    """Read, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('report', choices=REPORTS)
    parser.add_argument('files', type=Path, nargs='+')
    add_option(parser)
    args = parser.parse_args()
    table, align = REPORTS[args.report]
    columns, *rows = table(*args.files)
    write_table(args.table, columns, rows, align)


if __name__ == '__main__':
    main()
