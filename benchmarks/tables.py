"""The tables of figures: benchmarks write them as JSON into benchmarks/results, and this puts them into the pages.

    python benchmarks/tables.py [--check]

A benchmark that is given ``--table benchmarks/results/NAME.json`` writes its table there: columns, rows of cells as
they are shown, and the commands that gave them. In a page it stands, as Markdown, between ``<!-- table: NAME -->`` and
``<!-- end -->``, with its commands anywhere on that page. ``--check`` changes nothing, and fails where a page says
something else than the JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / 'benchmarks' / 'results'
PAGES = (ROOT / 'README.md', ROOT / 'README_zh-CN.md', *sorted((ROOT / 'docs').glob('*.md')))
PLACE = re.compile(r'^(?P<indent> *)<!-- table: (?P<name>\S+) -->\n(?P<table>.*?)^ *<!-- end -->$', re.M | re.S)
_WHERE = ('--table', '--json')  # options that say where figures go, and nothing of how they come about

Table = dict[str, Any]


def add_option(parser: argparse.ArgumentParser) -> None:
    """``--table FILE``, which every benchmark with a table has."""
    parser.add_argument('--table', type=Path, metavar='FILE', help='write the table there, for benchmarks/tables.py')


def read_table(name: str) -> Table:
    """A table of benchmarks/results."""
    found: Table = json.loads((RESULTS / f'{name}.json').read_text(encoding='utf-8'))
    return found


def records(name: str) -> list[dict[str, str]]:
    """The rows of a table, each by column."""
    found = read_table(name)
    return [dict(zip(found['columns'], row)) for row in found['rows']]


def write_table(
    path: Path | None, columns: Sequence[str], rows: Iterable[Sequence[str]], align: str = '', command: str = ''
) -> None:
    """Print a table, and write it where there is a file for it.

    Commands of a file that is there stay as long as they say what was called now: a word that begins with two capitals
    stands for anything, so that no path of this machine comes into a page. Those of other programs stay too.

    Args:
        path: ``--table``.
        columns: their heads.
        rows: of cells, as they are shown.
        align: a letter for each column, ``l`` or ``r``; all left if empty.
        command: that gives the table, if it is not what was called now.
    """
    table = {'command': [command or _called()], 'columns': list(columns), 'align': align or 'l' * len(columns)}
    table['rows'] = [list(row) for row in rows]
    print(markdown(table), flush=True)
    if path is None:
        return
    if path.exists():
        new, before = table['command'][0], json.loads(path.read_text(encoding='utf-8'))['command']
        others = [old for old in before if old.split()[:2] != new.split()[:2]]
        table['command'] = before if any(_is_like(old, new) for old in before) else [*others, new]
    rest = ',\n'.join(f' {json.dumps(k)}: {json.dumps(v, ensure_ascii=False)}' for k, v in table.items() if k != 'rows')
    lines = ',\n'.join(f'  {json.dumps(row, ensure_ascii=False)}' for row in table['rows'])
    path.write_text(f'{{\n{rest},\n "rows": [\n{lines}\n ]\n}}\n', encoding='utf-8')


def beside(path: Path | None, what: str) -> Path | None:
    """The file of a further table of a benchmark."""
    return path and path.with_stem(f'{path.stem}-{what}')


def spread(found: dict[str, float], digits: int = 2) -> str:
    """A median with its quartiles, as a cell."""
    return '{} [{}, {}]'.format(*(f'{found[name]:.{digits}f}' for name in ('median', 'q1', 'q3')))


def markdown(table: Table) -> str:
    """A table, as pages have it."""
    rules = ['--:' if side == 'r' else '---' for side in table['align']]
    lines = [' | '.join(cells) for cells in (table['columns'], rules, *table['rows'])]
    return '\n'.join(f'| {line} |' for line in lines)


def filled(page: str) -> str:
    """A page with the tables that it names."""

    def put(match: re.Match[str]) -> str:
        lines = [f'<!-- table: {match["name"]} -->', *markdown(read_table(match['name'])).splitlines(), '<!-- end -->']
        return '\n'.join(match['indent'] + line for line in lines)

    return PLACE.sub(put, page)


def without_command(page: str) -> list[str]:
    """Tables of a page that stand there without the commands that gave them."""
    said = ' '.join(page.replace('\\\n', ' ').split())
    names = [match['name'] for match in PLACE.finditer(page)]
    return [name for name in names if not all(command in said for command in read_table(name)['command'])]


def _called() -> str:
    words = [os.path.relpath(sys.argv[0], ROOT), *sys.argv[1:]]
    places = [i for i, word in enumerate(words) if word in _WHERE]
    left = [word for i, word in enumerate(words) if i not in places and i - 1 not in places]
    return shlex.join(['python', *left])


def _is_like(old: str, new: str) -> bool:
    pairs = itertools.zip_longest(shlex.split(old), shlex.split(new))
    return all(a == b or (a and b and re.match('[A-Z]{2}', a)) for a, b in pairs)


def main() -> int:
    """Fill the pages, or look whether they are filled."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--check', action='store_true', help='change nothing')
    args = parser.parse_args()
    wrong = []
    for path in PAGES:
        page = path.read_text(encoding='utf-8')
        text = filled(page)
        wrong += [f'{path.name}: the command of {name} is missing' for name in without_command(text)]
        if args.check and text != page:
            wrong.append(f'{path.name} says something else than benchmarks/results: python benchmarks/tables.py')
        elif text != page:
            path.write_text(text, encoding='utf-8')
    print(*wrong, sep='\n', end='\n' if wrong else '')
    return int(bool(wrong))


if __name__ == '__main__':
    sys.exit(main())
