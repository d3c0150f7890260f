"""What benchmarks/gpu.py found, as Markdown."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Found = dict[str, Any]


def faults(found: Found) -> list[str]:
    """Rows that failed, and those that were not right."""
    lines = [f'{row["name"]}: {row["error"][:800]}' for row in found['rows'] if 'error' in row]
    return lines + [f'{row["name"]}: NOT RIGHT' for row in found['rows'] if row.get('ok') is False]


def markdown(found: Found) -> str:
    """The whole report."""
    about = found['about']
    lines = ['## On a GPU', '', ', '.join(f'{name} {value}' for name, value in about.items() if name != 'error'), '']
    if about.get('device') != 'cuda':
        lines += [
            'No GPU was used: tiny images on the CPU, to see that rows of every kind work. Their times mean nothing.',
            '',
        ]
    for part in (_times, _memory, _compiled, _files, _correct):
        lines += list(part(found['rows'])) + ['']
    lines += ['Failed or not right:', '', *(f'- {line}' for line in faults(found) or ['nothing']), '']
    lines += ['Left out, for want of time:', '', *(f'- {name}' for name in found['left out'] or ['nothing'])]
    return '\n'.join(lines) + '\n'


def _of(rows: list[Found], kind: str, part: str) -> list[Found]:
    return [row for row in rows if row['kind'] == kind and part in row]


def _head(*names: str) -> Iterator[str]:
    yield _line(*names)
    yield _line(*('---' for _ in names))


def _line(*cells: object) -> str:
    return '| ' + ' | '.join(map(str, cells)) + ' |'


def _ratio(took: Found, way: str) -> str:
    spread = took['ratios'][way]
    return f'{spread["median"]:.3f} [{spread["q1"]:.3f}, {spread["q3"]:.3f}]'


def _small(value: Any) -> str:
    return f'{value:.1e}' if isinstance(value, float) else '–' if value is None else str(value)


def _times(rows: list[Found]) -> Iterator[str]:
    yield 'Batch 2, real crop sizes. Ratios to plain of the same round: medians and quartiles; `noise` is plain again.'
    yield ''
    yield from _head('model', 'images', 'precision', 'step', 'plain ms', '`stages`', '`linear`', 'opened', 'noise')
    for row in _of(rows, 'time', 'inference'):
        size = 'x'.join(map(str, row['size'][2:]))
        for mode in ('inference', 'training'):
            if mode in row:
                took = row[mode]
                ratios = [_ratio(took, way) for way in ('stages', 'linear', 'opened', 'again')]
                yield _line(row['model'], size, row['precision'], mode, f'{took["ms"]["plain"]:.2f}', *ratios)


def _memory(rows: list[Found]) -> Iterator[str]:
    yield 'Most memory that torch held on the GPU, MiB.'
    yield ''
    ways = ('plain', 'stages', 'linear', 'opened')
    yield from _head('model', 'step', *ways)
    for row in _of(rows, 'memory', 'peak MiB'):
        peaks = row['peak MiB']
        for step in peaks['plain']:
            cells = [peaks.get(way, {}).get(step) for way in ways]
            yield _line(row['model'], step, *('–' if cell is None else f'{cell:.0f}' for cell in cells))


def _compiled(rows: list[Found]) -> Iterator[str]:
    backend = next((row['backend'] for row in _of(rows, 'compile', 'backend')), '')
    yield f'torch.compile ({backend}). Graphs, and relative errors to the same model not compiled, are plain / keyed.'
    yield ''
    heads = ('plain ms', 'keyed/plain', 'not compiled/plain', 'keyed, not compiled/plain')
    yield from _head('model', 'step', 'points', 'graphs', 'one graph', 'logits', 'gradients', 'compiled in s', *heads)
    for row in _of(rows, 'compile', 'plain'):
        parts = [row.get(way, {}) for way in ('plain', 'keyed')]
        pairs = [' / '.join(_small(p.get(n)) for p in parts) for n in ('graphs', 'fullgraph', 'logits', 'gradient')]
        seconds = ' / '.join(f'{p["seconds"]:.0f}' if 'seconds' in p else '–' for p in parts)
        took = [f'{row["ms"]["plain"]:.2f}', *(_ratio(row, w) for w in row['ratios'])] if 'ms' in row else ['–'] * 4
        yield _line(row['model'], row['mode'], f'`{row["points"]}`', *pairs, seconds, *took)


def _files(rows: list[Found]) -> Iterator[str]:
    yield 'From a file to the weights on the device, ms; in brackets over torch.load and load_state_dict.'
    yield ''
    ways = ('plain', 'sealed', 'plain, on the device', 'sealed, on the device', 'locked and opened, on the device')
    yield from _head('model', 'MiB', *ways, 'noise', 'bits equal')
    for row in _of(rows, 'files', 'ms'):
        took = row['ms']
        base = {way: took['plain, on the device' if 'on the device' in way else 'plain'] for way in ways}
        cells = [f'{took[way]:.1f} ({took[way] / base[way]:.2f})' for way in ways]
        equal = 'all' if row['ok'] else ', '.join(way for way, same in row['bits equal'].items() if not same) + ' NOT'
        yield _line(row['model'], f'{row["MiB"]:.0f}', *cells, _ratio(row, 'again'), equal)


def _correct(rows: list[Found]) -> Iterator[str]:
    yield 'Locked, with its key against plain: relative errors in float32 without TF32; then without the key.'
    yield ''
    names = ('logits', 'loss', 'gradient norm', 'without key', 'without key, same class', 'autocast')
    names += ('autocast, plain to float32', 'to the CPU', 'detached')
    yield from _head('model', 'points', *names, 'right')
    for row in _of(rows, 'correct', 'opened'):
        for points in ('stages', 'linear', 'opened'):
            part = row.get(points, {})
            right = {True: 'yes', False: 'NO'}.get(part.get('ok', True))
            yield _line(row['model'], points, *(_small(part.get(name)) for name in names), right)
    for row in rows:
        if 'not lockable' in row.get('stages', {}):
            yield f'\n{row["model"]} cannot be locked at `stages`: {row["stages"]["not lockable"]}'
