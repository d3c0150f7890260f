"""Tables of text, for the commands."""

from __future__ import annotations

from collections.abc import Sequence


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print columns as wide as they need be."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    for row in [head, ['-' * width for width in widths], *rows]:
        print('  '.join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
