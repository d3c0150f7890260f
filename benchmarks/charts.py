"""Draw tables of benchmarks/results as charts, into docs/images/.

python benchmarks/charts.py
"""

from __future__ import annotations

import re

from matplotlib.figure import Figure
from tables import ROOT, records

OURS, OTHERS, GREY = '#1b7f5c', '#c0504d', '#9a9a9a'


def number(text: str) -> float | None:
    """The first number of a cell."""
    match = re.search(r'[-+]?\d+(\.\d+)?', text.replace('−', '-'))
    return float(match[0]) if match else None


def methods() -> Figure:
    """Accuracy with the key and without it, and what the file gives an attacker with photos."""
    rows = [row for row in records('methods') if number(row['audit advantage'])]
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


def loading() -> Figure:
    """Loading a file, over loading the plain one."""
    rows = [row for row in records('sealing') if row['against'] == 'load']
    figure = Figure(figsize=(8, 0.36 * len(rows) + 1), dpi=110, layout='constrained')
    axes = figure.subplots()
    names = [row[''].replace('*', '').replace('`', '') for row in reversed(rows)]
    ours = [name.startswith(('sealed', 'signed')) for name in names]
    values = [number(row['FCN-R101']) for row in reversed(rows)]
    axes.barh(range(len(rows)), values, color=[OURS if one else GREY for one in ours])
    axes.set_yticks(range(len(rows)), names)
    axes.axvline(1, color='black', lw=0.8, ls=':')
    axes.set_title('time to load 262 MiB, over torch.load', size=10, loc='left')
    return figure


CHARTS = {'methods.png': methods, 'loading.png': loading}


def main() -> None:
    """Draw them all."""
    for name, draw in CHARTS.items():
        figure = draw()
        for axes in figure.axes:
            axes.spines[['top', 'right']].set_visible(False)
        figure.savefig(ROOT / 'docs' / 'images' / name)


if __name__ == '__main__':
    main()
