"""What the runs on another data set come to: how much better a start the protected file is for it than none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from keyseg_mm.audit.engine.attack import KEY_HOLDER
from keyseg_mm.audit.model.advantage import FAILED, NOISE, Report, Result, floor_of, short

#: Share of the key from which a transfer attack is said to have found some of it.
_FOUND = 0.5


def transferred(report: Report) -> dict[str, Any] | None:
    """Figures and words on the transfer.

    Args:
        report: of an audit, with its part ``transfer`` if there is one.

    Returns:
        None where no transfer was tried. Else ``rows`` by share (``attack``, ``control``, ``key_holder``,
        ``advantage``, ``noise``, and ``to_gain``, what the key holder has above the control), ``headline`` (that of the
        largest advantage),
        ``level`` (``helps``, ``no-help``, ``idle``: the key would not help either, ``void``), and ``says``, a sentence
        or two. Rows are of attackers who came to an end; None stands for a key holder who did not.
    """
    part = report.get('transfer')
    if part is None:
        return None
    rows = [row for share in sorted({r['share'] for r in part['results']}) if (row := _row(part, share))]
    headline = max(rows, key=lambda row: row['advantage'] - row['noise'], default=None)
    level = _level(part, rows, headline)
    return {'rows': rows, 'headline': headline, 'level': level, 'says': _says(part, headline, level)}


def _row(part: Mapping[str, Any], share: float) -> dict[str, Any] | None:
    done = [r for r in part['results'] if r['share'] == share and not r['error']]
    attack, control, holder = (_best(done, kind) for kind in ('attack', 'control', KEY_HOLDER))
    if attack is None:
        return None
    if control is None or control['miou'] < part['floor']:
        control = floor_of(part)
    return {
        'share': share,
        'photos': attack['photos'],
        'attack': short(attack),
        'control': short(control),
        'key_holder': short(holder) if holder else None,
        'advantage': attack['miou'] - control['miou'],
        'noise': max(NOISE, _spread(done)),
        'to_gain': holder['miou'] - control['miou'] if holder else None,
    }


def _best(results: Sequence[Result], kind: str) -> Result | None:
    return max((r for r in results if r['kind'] == kind), key=lambda r: r['miou'], default=None)


def _spread(results: Sequence[Result]) -> float:
    """What two draws of the better control from scratch differ by: luck, then."""
    by_name: dict[str, list[float]] = {}
    for result in results:
        if result['kind'] == 'control':
            by_name.setdefault(result['name'], []).append(result['miou'])
    twice = [values for values in by_name.values() if len(values) > 1]
    best = max(twice, key=max, default=[0.0])
    return max(best) - min(best)


def _level(part: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], headline: Mapping[str, Any] | None) -> str:
    failed = sum(bool(r['error']) for r in part['results'])
    trusted = all(check['passed'] for check in part['checks'].values())
    if headline is None or not trusted or failed > FAILED * len(part['results']):
        return 'void'
    if headline['advantage'] > headline['noise']:
        return 'helps'
    gains = [row['to_gain'] - row['noise'] for row in rows if row['to_gain'] is not None]
    return 'idle' if gains and max(gains) <= 0.0 else 'no-help'


def _says(part: Mapping[str, Any], headline: Mapping[str, Any] | None, level: str) -> str:
    if headline is None or level == 'void':
        return f'The transfer to {part["config"]} is void: its runs failed, or the referee failed its own check there.'
    attack, control, holder = headline['attack'], headline['control'], headline['key_holder']
    with_key = f'; with the key it would be {holder["miou"]:.1f}' if holder else ''
    versus = (
        f'with {headline["photos"]} photos of it, {attack["title"]} reaches {attack["miou"]:.1f} mIoU; without the '
        f'file, {control["title"]} gives {control["miou"]:.1f}{with_key} (advantage {headline["advantage"]:+.1f}, '
        f'of which {headline["noise"]:.1f} may be luck)'
    )
    first = {
        'helps': f'As a start for another data set ({part["config"]}) the file is worth something to a thief',
        'no-help': f'As a start for another data set ({part["config"]}) the file is worth no more to a thief than none',
        'idle': f'For another data set ({part["config"]}) the file is no better a start than none, but with the key it '
        'is not either, so this says nothing about the lock',
    }[level]
    found = max((r['recovery'] or 0.0 for r in _attacks(part)), default=0.0)
    more = f' These photos also gave away {100 * found:.0f} % of the key itself.' if found > _FOUND else ''
    more += (
        ' What is left plain carries features over: protect earlier points, or all layers (points=linear).'
        if level == 'helps'
        else ''
    )
    return f'{first}: {versus}.{more}'


def _attacks(part: Mapping[str, Any]) -> list[Result]:
    return [r for r in part['results'] if r['kind'] == 'attack' and not r['error']]
