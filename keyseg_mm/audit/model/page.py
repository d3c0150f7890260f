"""The page of an audit of a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from markupsafe import Markup

from keyseg_mm.audit.engine.results import finished
from keyseg_mm.audit.model.report import ModelReport
from keyseg_mm.audit.model.scoring import Score
from keyseg_mm.audit.model.summary import ModelSummary
from keyseg_mm.audit.report.charts import Series, line_chart
from keyseg_mm.audit.report.page import Panel, figure, page, percent
from keyseg_mm.audit.report.pictures import painted
from keyseg_mm.audit.report.summary import groups
from keyseg_mm.entries import describe

#: Columns of the table of all runs.
_COLUMNS: dict[str, Callable[[Score], str]] = {
    'mIoU': lambda score: figure(score.miou),
    'fidelity': lambda score: f'{figure(score.agreement, 0)} %' if score.agreement is not None else figure(None),
    'kappa': lambda score: figure(score.kappa, 2),
    'key': lambda score: percent(score.recovery),
}


def render(report: ModelReport, summary: ModelSummary) -> str:
    """The page as text."""
    elsewhere = report.transfer.outcomes if report.transfer else ()
    return page(
        'model.html.j2',
        report=report,
        summary=summary,
        groups=groups([*report.outcomes, *elsewhere], lambda score: (score.miou,)),
        shares=Markup(_shares_chart(report, summary)),  # noqa: S704 - made of numbers and escaped names
        keys=Markup(_keys_chart(report)),  # noqa: S704
        panels=_panels(report, summary),
        columns=_COLUMNS,
        describe=describe,
    )


def _shares_chart(report: ModelReport, summary: ModelSummary) -> str:
    """Best attack and best control against the share of the photos, between authorised model and floor."""
    rows = list(enumerate(summary.advantages))
    ticks = [(float(i), 'none' if a.share is None else f'{100 * a.share:g} %') for i, a in rows]
    lines = [
        Series('right key', [(0.0, report.authorised.miou)], 'reference'),
        Series('best control', [(float(i), a.control.score.miou) for i, a in rows], 'control'),
        Series('best attack', [(float(i), a.attack.score.miou) for i, a in rows], 'attack'),
    ]
    return line_chart(lines, "attacker's share of the training photos", 'mIoU', ticks)


def _keys_chart(report: ModelReport) -> str:
    """mIoU against the share of the key that leaked; empty where no such attack ran."""
    best: dict[float, float] = {}
    for result in finished(report.outcomes, 'attack'):
        share = result.about.key_share
        if share is not None:
            best[share] = max(best.get(share, 0.0), result.score.miou)
    if not best:
        return ''
    ends = [(0.0, report.no_key.miou), (1.0, report.authorised.miou)]
    ticks = [(x, f'{100 * x:g} %') for x in (0.0, 0.25, 0.5, 0.75, 1.0)]
    line = Series('best attack', sorted([*best.items(), *ends]), 'attack')
    return line_chart([line], 'share of the key leaked', 'mIoU', ticks)


def _panels(report: ModelReport, summary: ModelSummary) -> list[Panel]:
    """Photos and what everybody sees in them, side by side."""
    pictures, headline = report.pictures, summary.headline

    def panel(title: str, labels: Sequence[str], miou: float | None = None, note: str = '') -> Panel:
        shown = tuple(painted(text, pictures.palette) for text in labels)
        return Panel(title, shown, '' if miou is None else f'{figure(miou)} mIoU', note)

    found = [Panel('photo', pictures.photos), panel('truth', pictures.truth)]
    found.append(panel('right key', pictures.authorised, report.authorised.miou))
    found.append(panel('no key', pictures.no_key, report.no_key.miou))
    for title, best in (('best attack', headline.attack), ('best control', headline.control)):
        for result in finished(report.outcomes):
            if result.about == best.about:
                found.append(panel(title, result.pictures, result.score.miou, result.about.title))
    return found
