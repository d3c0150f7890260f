"""What benchmarks/gpu.py found, as Markdown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tables import beside, markdown, spread, write_table

Found = dict[str, Any]
Part = tuple[str, list[str], list[list[str]]]  # a sentence, and a table: heads and rows


def faults(found: Found) -> list[str]:
    """Rows that failed, and those that were not right."""
    lines = [f'{row["name"]}: {row["error"][:800]}' for row in found['rows'] if 'error' in row]
    return lines + [f'{row["name"]}: NOT RIGHT' for row in found['rows'] if row.get('ok') is False]


def report(found: Found) -> str:
    """The whole report, as Markdown."""
    about = found['about']
    lines = ['## On a GPU', '', ', '.join(f'{name} {value}' for name, value in about.items() if name != 'error'), '']
    if about.get('device') != 'cuda':
        lines += [
            'No GPU was used: tiny images on the CPU, to see that rows of every kind work. Their times mean nothing.',
            '',
        ]
    for part in PARTS.values():
        said, columns, rows = part(found['rows'])
        lines += [said, '', markdown({'columns': columns, 'align': 'l' * len(columns), 'rows': rows}), '']
    lines += [
        f'{row["model"]} cannot be locked at `stages`: {row["stages"]["not lockable"]}\n'
        for row in found['rows']
        if 'not lockable' in row.get('stages', {})
    ]
    lines += ['Failed or not right:', '', *(f'- {line}' for line in faults(found) or ['nothing']), '']
    lines += ['Left out, for want of time:', '', *(f'- {name}' for name in found['left out'] or ['nothing'])]
    return '\n'.join(lines) + '\n'


def write_tables(found: Found, path: Path) -> None:
    """Write the table of times there, and the others beside it; what is right or not, pages say in words."""
    for name, part in PARTS.items():
        _, columns, rows = part(found['rows'])
        if part != _correct:
            write_table(beside(path, name) if name else path, columns, rows, command='make gpu-check')


def _of(rows: list[Found], kind: str, part: str) -> list[Found]:
    return [row for row in rows if row['kind'] == kind and part in row]


def _ratio(took: Found, way: str) -> str:
    return spread(took['ratios'][way], 3)


def _small(value: Any) -> str:
    return f'{value:.1e}' if isinstance(value, float) else '–' if value is None else str(value)


def _times(rows: list[Found]) -> Part:
    said = 'Batch 2, real crop sizes. Ratios to plain of the same round: medians and quartiles; `noise` is plain again.'
    heads, lines = ['model', 'images', 'precision', 'step', 'plain ms', '`stages`', '`linear`', 'opened', 'noise'], []
    for row in _of(rows, 'time', 'inference'):
        size = 'x'.join(map(str, row['size'][2:]))
        for mode in ('inference', 'training'):
            if mode in row:
                took = row[mode]
                ratios = [_ratio(took, way) for way in ('stages', 'linear', 'opened', 'again')]
                lines.append([row['model'], size, row['precision'], mode, f'{took["ms"]["plain"]:.2f}', *ratios])
    return said, heads, lines


def _memory(rows: list[Found]) -> Part:
    ways, lines = ('plain', 'stages', 'linear', 'opened'), []
    for row in _of(rows, 'memory', 'peak MiB'):
        peaks = row['peak MiB']
        for step in peaks['plain']:
            cells = [peaks.get(way, {}).get(step) for way in ways]
            lines.append([row['model'], step, *('–' if cell is None else f'{cell:.0f}' for cell in cells)])
    return 'Most memory that torch held on the GPU, MiB.', ['model', 'step', *ways], lines


def _compiled(rows: list[Found]) -> Part:
    backend = next((row['backend'] for row in _of(rows, 'compile', 'backend')), '')
    said = f'torch.compile ({backend}). Graphs, and relative errors to the same model not compiled, are plain / keyed.'
    heads = ['model', 'step', 'points', 'graphs', 'one graph', 'logits', 'gradients', 'compiled in s']
    heads += ['plain ms', 'keyed/plain', 'not compiled/plain', 'keyed, not compiled/plain']
    lines = []
    for row in _of(rows, 'compile', 'plain'):
        parts = [row.get(way, {}) for way in ('plain', 'keyed')]
        pairs = [' / '.join(_small(p.get(n)) for p in parts) for n in ('graphs', 'fullgraph', 'logits', 'gradient')]
        seconds = ' / '.join(f'{p["seconds"]:.0f}' if 'seconds' in p else '–' for p in parts)
        took = [f'{row["ms"]["plain"]:.2f}', *(_ratio(row, w) for w in row['ratios'])] if 'ms' in row else ['–'] * 4
        lines.append([row['model'], row['mode'], f'`{row["points"]}`', *pairs, seconds, *took])
    return said, heads, lines


def _files(rows: list[Found]) -> Part:
    said = 'From a file to the weights on the device, ms; in brackets over torch.load and load_state_dict.'
    ways = ('plain', 'sealed', 'plain, on the device', 'sealed, on the device', 'locked and opened, on the device')
    lines = []
    for row in _of(rows, 'files', 'ms'):
        took = row['ms']
        base = {way: took['plain, on the device' if 'on the device' in way else 'plain'] for way in ways}
        cells = [f'{took[way]:.1f} ({took[way] / base[way]:.2f})' for way in ways]
        equal = 'all' if row['ok'] else ', '.join(way for way, same in row['bits equal'].items() if not same) + ' NOT'
        lines.append([row['model'], f'{row["MiB"]:.0f}', *cells, _ratio(row, 'again'), equal])
    return said, ['model', 'MiB', *ways, 'noise', 'bits equal'], lines


def _correct(rows: list[Found]) -> Part:
    said = 'Locked, with its key against plain: relative errors in float32 without TF32; then without the key.'
    names = ['logits', 'loss', 'gradient norm', 'without key', 'without key, same class', 'autocast']
    names += ['autocast, plain to float32', 'to the CPU', 'detached']
    lines = []
    for row in _of(rows, 'correct', 'opened'):
        for points in ('stages', 'linear', 'opened'):
            part = row.get(points, {})
            right = 'yes' if part.get('ok', True) else 'NO'
            lines.append([row['model'], points, *(_small(part.get(name)) for name in names), right])
    return said, ['model', 'points', *names, 'right'], lines


PARTS = {'': _times, 'memory': _memory, 'compile': _compiled, 'files': _files, 'correct': _correct}
