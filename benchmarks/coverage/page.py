#!/usr/bin/env python
"""Write what run.py found into docs/coverage.md, between its marks, and its tables into benchmarks/results.

python benchmarks/coverage/page.py onedl=onedl.json openmmlab=openmmlab.json [--page docs/coverage.md]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from keyseg_mm.atomic import write_new

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))  # where all benchmarks' tables are
from tables import RESULTS, ROOT, filled, write_table  # noqa: E402

PAGE = ROOT / 'docs' / 'coverage.md'
BEGIN, END = '<!-- made by benchmarks/coverage/page.py -->', '<!-- all that it made -->'
#: What the words of an error say of a model that does not run plain.
NEEDS = {
    'ccnet': 'compiled ops of mmcv',
    'convnext': 'mmpretrain',
    'mask2former': 'mmdet',
    'maskformer': 'mmdet',
    'point_rend': 'compiled ops of mmcv',
    'poolformer': 'mmpretrain',
    'psanet': 'compiled ops of mmcv',
    'san': 'compiled ops of mmcv',
    'vpd': 'the diffusion model of `ldm`, with weights of others',
}
_LEAST = 0.95
COMMAND = 'python benchmarks/coverage/page.py STACK=FILE'
COLUMNS = (
    *('config', 'same model', 'M parameters', '`linear` points', 'behind maps', 'with the key', 'without it'),
    '`stages` points',
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('files', nargs='+', metavar='STACK=FILE')
    parser.add_argument('--page', type=Path, default=PAGE)
    args = parser.parse_args()
    stacks = {
        stack: json.loads(Path(file).read_text()) for stack, _, file in (text.partition('=') for text in args.files)
    }
    text = args.page.read_text()
    head, tail = text[: text.index(BEGIN) + len(BEGIN)], text[text.index(END) :]
    made = '\n\n'.join([whole(stacks), *('\n'.join(lines(stack, found)) for stack, found in stacks.items())])
    write_new(args.page, lambda file: file.write(f'{head}\n\n{made}\n\n{tail}'.encode()), overwrite=True)


def whole(stacks: dict[str, Any]) -> str:
    """How many of all configs are right on one of the stacks, and which are not."""
    configs = {name for found in stacks.values() for name in found['models']}
    right = set[str]()
    for found in stacks.values():
        models = {found['models'][name]['model'] for name, row in found['rows'].items() if runs(row) and is_right(row)}
        right |= {name for name, row in found['models'].items() if row['model'] in models}
    return (
        f'Of {len(configs)} configs, {len(right)} build a model that is right on one of the stacks below. The others, '
        f'whose reasons stand there: {", ".join(sorted(configs - right))}.'
    )


def runs(row: dict[str, Any]) -> bool:
    """Whether the plain model does."""
    return 'linear' in row


def lines(stack: str, found: dict[str, Any]) -> Iterator[str]:
    """The section of one stack."""
    models, rows = found['models'], found['rows']
    ran = {name: row for name, row in rows.items() if runs(row)}
    right = [name for name, row in ran.items() if is_right(row)]
    families = {name.partition('/')[0] for name in ran}
    yield f'## {stack}'
    yield ''
    different = len({row['model'] for row in models.values()})
    yield (
        f'{len(models)} configs, {different} different models. Looked at: {len(rows)}; {len(ran)} of these, of '
        f'{len(families)} families, run plain here, and {len(right)} of the {len(ran)} are right protected.'
    )
    yield ''
    same = {name: str(sum(row['model'] == models[name]['model'] for row in models.values())) for name in ran}
    table = ([name, same[name], *cells(ran[name])] for name in sorted(ran))
    write_table(RESULTS / f'coverage-{stack}.json', COLUMNS, table, 'l' + 'r' * (len(COLUMNS) - 1), COMMAND)
    yield filled(f'<!-- table: coverage-{stack} -->\n<!-- end -->')
    yield ''
    few = {name: row for name, row in ran.items() if row['linear'].get('share', 1) < _LEAST}
    if few:
        yield 'Less than 95 % behind maps:'
        yield ''
        for name in sorted(few):
            yield f'- {name}: {reasons(few[name]["linear"]["left"])}'
        yield ''
    wrong = [name for name in ran if name not in right]
    if wrong:
        yield 'Not right:'
        yield ''
        for name in sorted(wrong):
            said = [ran[name][kind]['wrong'] for kind in ('linear', 'stages') if 'wrong' in ran[name].get(kind, {})]
            yield f'- {name}: {"; ".join(said)}'
        yield ''
    yield 'Not covered, since the plain model does not run here, or not within the bounds:'
    yield ''
    for name in sorted(set(rows) - set(ran)):
        row = rows[name]
        family = name.partition('/')[0]
        needs = None if family in families else NEEDS.get(family)
        why = needs or row.get('plain') or f'it took more than {row["limit"]}'
        yield f'- {name}: {why}'


def is_right(row: dict[str, Any]) -> bool:
    """Whether all that was looked for holds, at both presets."""
    return not any('wrong' in row[kind] for kind in ('linear', 'stages'))


def cells(row: dict[str, Any]) -> list[str]:
    """A model's figures."""
    linear, stages = row['linear'], row['stages']
    figures = [f'{row["parameters"] / 1e6:.1f}']
    if 'wrong' in linear:
        figures += ['wrong'] * 4
    else:
        figures += [str(linear['points']), f'{100 * linear["share"]:.1f} %', f'{linear["error"]:.0e}']
        figures += [f'{linear["without"]:.2f}' if linear['without'] < 1000 else f'{linear["without"]:.0e}']
    return [*figures, 'wrong' if 'wrong' in stages else str(stages['points'])]


def reasons(left: list[list[Any]]) -> str:
    """The largest parameters that stay plain, by the reason why."""
    by: dict[str, list[str]] = {}
    for name, share, why in left:
        by.setdefault(why or 'no layer reads a map by them', []).append(f'`{name}` {100 * share:.1f} %')
    return '; '.join(f'{why} ({", ".join(names)}, to name the largest)' for why, names in by.items())


if __name__ == '__main__':
    main()
