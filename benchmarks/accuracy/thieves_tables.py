"""The tables of thieves.py: what single copies keep of a fingerprint, and what copies keep that were put together."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tables import beside, write_table

Row = dict[str, Any]
TITLES = {
    'nothing': 'the copy as it is',
    'channels in any order and scale *': 'rows and columns in any order, rows in any scale',
    'the same, pruned by 50% *': 'rows and columns in any order, rows in any scale, half pruned',
    'norms folded': 'batch norms folded into the convolutions',
}
HOWS = {
    'mean': 'mean',
    'median': 'median',
    'largest': 'largest',
    'beyond (largest + smallest - median)': 'largest + smallest - median',
}
TOGETHER = re.compile(r'(.*) of (\d) copies')


def write_tables(path: Path | None, rows: dict[str, Row], titles: Sequence[str], iterations: int) -> None:
    """Print both, and write them where there is a file.

    Args:
        path: of the first; the other comes beside it.
        rows: what thieves.py found, by title.
        titles: of all treatments, in their order.
        iterations: of fine-tuning.
    """
    plain = f'plain {rows["plain"]["mIoU"]:.2f}, floor {rows["plain"]["floor"]:.2f}'
    single = {title: rows[title] for title in titles if title in rows and not TOGETHER.fullmatch(title)}
    cells = (cells_of(title, row, iterations) for title, row in single.items())
    write_table(path, (plain, 'mIoU', 'z', 'chance', 'others'), cells)
    copies = list(copies_of(rows))
    if copies:
        write_table(beside(path, 'copies'), ('copies', *HOWS.values(), 'largest z of others'), copies)


def cells_of(title: str, row: Row, iterations: int) -> list[str]:
    """A row of a single copy; what is not found is in bold."""
    words = TITLES.get(title) or title.replace('%', ' %').replace('tuned at', f'tuned for {iterations} iterations at')
    found = [z_of(row['z']), chance(row['log10 chance'])]
    if not row['found']:
        found = [f'**{found[0]}**', f'**{found[1]}: not found**']
    return [words, f'{row["mIoU"]:.2f}' if 'mIoU' in row else '', *found, z_of(row['largest z of others'])]


def copies_of(rows: dict[str, Row]) -> Iterator[list[str]]:
    """A row for each number of copies: the smallest z of those who had a part in it."""
    for count in sorted({match[2] for title in rows if (match := TOGETHER.fullmatch(title))}):
        found = [rows.get(f'{how} of {count} copies') for how in HOWS]
        cells = [z_of(row['z']) + (f' ({row["mIoU"]:.2f} mIoU)' if 'mIoU' in row else '') if row else '' for row in found]
        yield [count, *cells, z_of(max(row['largest z of others'] for row in found if row))]


def z_of(z: float) -> str:
    return f'{z:.0f}' if z >= 100 else f'{z:.1f}'


def chance(log10: float) -> str:
    """A bound of a probability, rounded up."""
    return f'{10**log10:.1g}' if log10 > -2 else f'1e-{int(-log10)}'
