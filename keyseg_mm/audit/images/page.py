"""The page of an audit of images."""

from __future__ import annotations

import math
from collections.abc import Callable

from keyseg_mm.audit.engine.results import Result, finished
from keyseg_mm.audit.images.report import ImageReport
from keyseg_mm.audit.images.scoring import ImageScore
from keyseg_mm.audit.images.summary import GROUPS, Gain, rank
from keyseg_mm.audit.report.page import Panel, figure, page, percent
from keyseg_mm.audit.report.summary import Summary, groups

_PICTURED = 8  # attacks whose pictures are shown, the best ones


def decibels(value: float) -> str:
    """A PSNR for a table."""
    return figure(value) if math.isfinite(value) else '∞'


#: Columns of the table of all runs.
_COLUMNS: dict[str, Callable[[ImageScore], str]] = {
    'SSIM': lambda score: figure(score.ssim, 3),
    'PSNR': lambda score: decibels(score.psnr),
    'edges': lambda score: figure(score.edges, 2),
    'bit for bit': lambda score: percent(score.exact),
    'cipher': lambda score: percent(score.found),
}


def render(report: ImageReport, summary: Summary[Gain]) -> str:
    """The page as text."""
    return page(
        'images.html.j2',
        report=report,
        summary=summary,
        groups=groups(report.outcomes, rank),
        panels=_panels(report),
        columns=_COLUMNS,
        dB=decibels,
    )


def _panels(report: ImageReport) -> list[Panel]:
    """Plain and encrypted images, the best control, and what each attack made of them, at its best."""
    found = [Panel('plain', report.plain), Panel('encrypted', report.encrypted)]
    controls = [r for r in finished(report.outcomes, 'control') if r.about.name != 'as-is']
    for best in sorted(controls, key=_rank, reverse=True)[:1]:
        found.append(_panel(best, f'best control: {best.about.title}', ''))
    attacks: dict[str, Result[ImageScore]] = {}
    for result in sorted(finished(report.outcomes, 'attack'), key=_rank, reverse=True):
        attacks.setdefault(result.about.name, result)
    shown = list(attacks.values())[:_PICTURED]
    return [*found, *(_panel(result, result.about.title, GROUPS[result.about.group]) for result in shown)]


def _rank(result: Result[ImageScore]) -> tuple[float, ...]:
    return rank(result.score)


def _panel(result: Result[ImageScore], title: str, note: str) -> Panel:
    return Panel(title, result.pictures, f'SSIM {figure(result.score.ssim, 2)}', note)
