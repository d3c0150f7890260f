"""Draw the tables of docs/results.md as charts, into docs/images/.

python benchmarks/charts.py
"""

from __future__ import annotations

import re
from pathlib import Path

from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[1]
OURS, OTHERS, GREY = '#1b7f5c', '#c0504d', '#9a9a9a'


def table(page: str, heading: str, column: str) -> list[dict[str, str]]:
    """The first table below a heading that has a column of that name; cells as they are written."""
    section = page.split(f'## {heading}\n', 1)[1].split('\n## ', 1)[0]
    rows = [[cell.strip() for cell in line.strip('|').split('|')] for line in section.splitlines() if line[:1] == '|']
    start = next(i for i, row in enumerate(rows) if column in row)
    found = []
    for row in rows[start + 2 :]:
        if len(row) != len(rows[start]):
            break
        found.append(dict(zip(rows[start], row)))
    return found


def number(text: str) -> float | None:
    """The first number of a cell."""
    match = re.search(r'[-+]?\d+(\.\d+)?', text.replace('−', '-'))
    return float(match[0]) if match else None


def methods(page: str) -> Figure:
    """Accuracy with the key and without it, and what the file gives an attacker with photos."""
    rows = [row for row in table(page, 'The methods side by side', 'audit advantage') if number(row['audit advantage'])]
    figure = Figure(figsize=(10, 0.34 * len(rows) + 1.3), dpi=110, layout='constrained')
    accuracy, advantage = figure.subplots(1, 2, sharey=True)
    for y, row in enumerate(reversed(rows)):
        color = OURS if row['method'].startswith(('locked', 'SETR', 'encrypted weights')) else OTHERS
        accuracy.barh(y + 0.19, number(row['right key']), 0.36, color=color)
        accuracy.barh(y - 0.19, number(row['no key']), 0.36, color=GREY)
        advantage.barh(y, number(row['audit advantage']), 0.6, color=color)
    accuracy.set_yticks(range(len(rows)), [row['method'] for row in reversed(rows)])
    accuracy.set_title('mIoU with the key, and without (grey); green: no training', size=10, loc='left')
    advantage.set_title('advantage of somebody with 32 photos (0 is safe)', size=10, loc='left')
    accuracy.axvline(2.68, color='black', lw=0.8, ls=':')
    return figure


def loading(page: str) -> Figure:
    """Loading a file, over loading the plain one."""
    rows = [row for row in table(page, 'Sealed files', 'against') if row['against'] == 'load']
    column = next(name for name in rows[0] if 'two cores' in name)
    rows = [row for row in rows if number(row[column])]
    figure = Figure(figsize=(8, 0.36 * len(rows) + 1), dpi=110, layout='constrained')
    axes = figure.subplots()
    names = [row[''].replace('*', '').replace('`', '') for row in reversed(rows)]
    ours = [name.startswith(('sealed', 'signed')) for name in names]
    values = [number(row[column]) for row in reversed(rows)]
    axes.barh(range(len(rows)), values, color=[OURS if one else GREY for one in ours])
    axes.set_yticks(range(len(rows)), names)
    axes.axvline(1, color='black', lw=0.8, ls=':')
    axes.set_title('time to load 262 MiB, over torch.load', size=10, loc='left')
    return figure


CHARTS = {'methods.png': methods, 'loading.png': loading}


def main() -> None:
    """Draw them all."""
    page = (ROOT / 'docs' / 'results.md').read_text(encoding='utf-8')
    for name, draw in CHARTS.items():
        for figure in [draw(page)]:
            for axes in figure.axes:
                axes.spines[['top', 'right']].set_visible(False)
            figure.savefig(ROOT / 'docs' / 'images' / name)


if __name__ == '__main__':
    main()
