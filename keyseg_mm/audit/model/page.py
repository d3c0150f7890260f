"""The page of an audit of a model."""

from __future__ import annotations

from collections.abc import Sequence

from keyseg_mm.audit.engine.results import finished
from keyseg_mm.audit.model.report import ModelReport
from keyseg_mm.audit.model.summary import ModelSummary
from keyseg_mm.audit.report.page import Panel, figure, page
from keyseg_mm.audit.report.pictures import painted
from keyseg_mm.entries import describe


def render(report: ModelReport, summary: ModelSummary) -> str:
    """The page as text."""
    return page(
        'model.html.j2',
        report=report,
        summary=summary,
        outcomes=report.outcomes,
        top=max(
            report.authorised.miou, *(x.score.miou for a in summary.advantages for x in (a.attack, a.control)), 1.0
        ),
        panels=_panels(report, summary),
        describe=describe,
    )


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
