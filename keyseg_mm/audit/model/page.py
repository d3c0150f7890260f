"""From ``report.json`` to ``report.html``: one file, without network, for screens, phones, paper and the dark.

What the page has in common with that of attacks on images is in :mod:`keyseg_mm.audit.report.page`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from keyseg_mm.audit.engine.attack import KEY_HOLDER
from keyseg_mm.audit.report.charts import Series, line_chart
from keyseg_mm.audit.report.page import page, read_report, write_page
from keyseg_mm.audit.report.pictures import painted
from keyseg_mm.entries import describe

_TEMPLATE = 'model.html.j2'
_KINDS = ('control', KEY_HOLDER, 'attack')
_WORDS = {'holds': 'Holds', 'leaks': 'Leaks', 'falls': 'Falls', 'idle': 'Says nothing', 'void': 'Void'}


def write_report(folder: Path) -> Path:
    """Make ``report.html`` beside ``report.json``; returns its path.

    Args:
        folder: of an audit.

    Raises:
        KeysegError: no report there, or one that this release does not read.
    """
    report = read_report(folder, 'keyseg_mm audit')
    return write_page(folder, render(report))


def render(report: Mapping[str, Any]) -> str:
    """The page as text."""
    results = [*report['results'], *(report.get('transfer') or {'results': []})['results']]
    panels = _panels(report)
    return page(
        _TEMPLATE,
        report=report,
        summary=report['summary'],
        word=_WORDS[report['summary']['level']],
        groups=_groups(results),
        shares=Markup(_shares_chart(report)),  # noqa: S704 - made of numbers and escaped names
        keys=Markup(_keys_chart(report)),  # noqa: S704
        panels=panels,
        across=len(panels),  # of pictures, on paper
        points=[{**p, 'transform': describe(p['transform'])} for p in report['points']],
    )


def _groups(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The results by situation; in each controls first, then the key holder, then attacks, the best ones on top."""
    groups: dict[str, dict[str, Any]] = {}
    for result in results:
        empty = {'title': result['situation_title'], 'beyond': result['beyond_files'], 'rows': []}
        groups.setdefault(result['situation'], empty)['rows'].append(result)
    for group in groups.values():
        group['rows'].sort(key=lambda r: (_KINDS.index(r['kind']), bool(r['error']), -(r.get('miou') or 0.0)))
        controls = [r['miou'] for r in group['rows'] if r['kind'] == 'control' and not r['error']]
        group['best'] = max((r.get('miou') or 0.0 for r in group['rows'] if r['kind'] == 'attack'), default=None)
        group['control'] = max(controls, default=None)
    return list(groups.values())


def _shares_chart(report: Mapping[str, Any]) -> str:
    """Best attack and best control against the share of the photos, between authorised model and floor."""
    rows = report['summary']['advantages']
    ticks = [(float(i), 'none' if a['share'] is None else f'{100 * a["share"]:g} %') for i, a in enumerate(rows)]
    lines = [
        Series('right key', [(0.0, report['authorised']['miou'])], 'reference'),
        Series('best control', [(float(i), a['control']['miou']) for i, a in enumerate(rows)], 'control'),
        Series('best attack', [(float(i), a['attack']['miou']) for i, a in enumerate(rows)], 'attack'),
    ]
    return line_chart(lines, "attacker's share of the training photos", 'mIoU', ticks)


def _keys_chart(report: Mapping[str, Any]) -> str:
    """mIoU against the share of the key that leaked; empty where no such attack ran."""
    best: dict[float, float] = {0.0: report['no_key']['miou'], 1.0: report['authorised']['miou']}
    plain: dict[float, float] = {}
    for result in report['results']:
        share = result['key_share']
        if share is not None and not result['error'] and result['kind'] == 'attack':
            best[share] = max(best.get(share, 0.0), result['miou'])
            plain[share] = result['miou']
    if not plain:
        return ''
    ticks = [(x, f'{100 * x:g} %') for x in (0.0, 0.25, 0.5, 0.75, 1.0)]
    return line_chart([Series('best attack', sorted(best.items()), 'attack')], 'share of the key leaked', 'mIoU', ticks)


def _panels(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Photos and what everybody sees in them, side by side."""
    pictures, headline = report['pictures'], report['summary']['headline']
    palette = pictures['palette']
    columns = [('photo', pictures['photos'], None, ''), ('truth', pictures['truth'], None, '')]
    columns += [('right key', pictures['authorised'], report['authorised']['miou'], '')]
    columns += [('no key', pictures['no_key'], report['no_key']['miou'], '')]
    for kind, title in (('attack', 'best attack'), ('control', 'best control')):
        found = _shown(report['results'], kind, headline[kind])
        if found is not None:
            columns.append((title, found['labels_png'], found['miou'], found['title']))
    panels = []
    for title, images, miou, note in columns:
        shown = images if title == 'photo' else [painted(text, palette) for text in images]
        panels.append({'title': title, 'miou': miou, 'note': note, 'images': shown})
    return panels


def _shown(results: Sequence[Mapping[str, Any]], kind: str, best: Mapping[str, Any]) -> Mapping[str, Any] | None:
    same = [r for r in results if (r['kind'], r['name'], r['situation']) == (kind, best['name'], best['situation'])]
    return same[0] if same and not same[0]['error'] else None
