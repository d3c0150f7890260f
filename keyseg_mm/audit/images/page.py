"""From ``report.json`` of an audit of images to ``report.html``, in the look of the audit of models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from keyseg_mm.audit.images.audit import FORMAT
from keyseg_mm.audit.images.summary import GROUPS, rank
from keyseg_mm.audit.report.page import page, read_report, write_page

_WORDS = {'holds': 'Holds', 'leaks': 'Leaks', 'falls': 'Falls', 'void': 'Void'}
_PICTURED = 8  # attacks whose pictures are shown, the best ones


def write_report(folder: Path) -> Path:
    """Make ``report.html`` beside ``report.json``; returns its path.

    Args:
        folder: of an audit of images.

    Raises:
        KeysegError: no report there, or one that this release does not read.
    """
    return write_page(folder, render(read_report(folder, FORMAT)))


def render(report: Mapping[str, Any]) -> str:
    """The page as text."""
    panels = _panels(report)
    return page(
        'images.html.j2',
        report=report,
        summary=report['summary'],
        word=_WORDS[report['summary']['level']],
        groups=_groups(report),
        panels=panels,
        across=len(panels),  # of pictures, on paper
    )


def _groups(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The results by what the attacker has; in each controls first, then attacks, the best ones on top."""
    groups = []
    for stand in report['stands']:
        rows = [r for r in report['results'] if r['situation'] == stand['name']]
        controls = [r for r in rows if r['kind'] == 'control']
        attacks = [r for r in rows if r['kind'] == 'attack']
        for found in (controls, attacks):
            found.sort(key=_order)
        if rows:
            best = attacks[0] if attacks and not attacks[0]['error'] else None
            groups.append({'title': stand['title'], 'rows': [*controls, *attacks], 'best': best})
    return groups


def _order(result: Mapping[str, Any]) -> tuple[bool, tuple[float, ...]]:
    return bool(result['error']), () if result['error'] else tuple(-float(x) for x in rank(result))


def _panels(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Plain and encrypted images, the best control, and what each attack made of them, at its best."""
    pictures = report['pictures']
    panels = [_panel('plain', None, '', pictures['plain']), _panel('encrypted', None, '', pictures['encrypted'])]
    good = [r for r in report['results'] if not r['error']]
    controls = [r for r in good if r['kind'] == 'control' and r['name'] != 'as-is']
    for result in sorted(controls, key=_order)[:1]:
        panels.append(_panel(f'best control: {result["title"]}', result['ssim'], '', result['pictures']))
    for result in _best_of_each([r for r in good if r['kind'] == 'attack'])[:_PICTURED]:
        panels.append(_panel(result['title'], result['ssim'], GROUPS[result['group']], result['pictures']))
    return panels


def _panel(title: str, ssim: float | None, note: str, images: Sequence[str]) -> dict[str, Any]:
    return {'title': title, 'ssim': ssim, 'note': note, 'images': images}


def _best_of_each(attacks: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    best: dict[str, Mapping[str, Any]] = {}
    for result in sorted(attacks, key=_order):
        best.setdefault(result['name'], result)
    return list(best.values())
