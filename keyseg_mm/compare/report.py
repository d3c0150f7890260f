"""What a comparison writes in the end: compare.json, compare.md and compare.html, one page without network."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from keyseg_mm import __version__
from keyseg_mm.atomic import write_json, write_new
from keyseg_mm.audit.report.charts import bar_chart
from keyseg_mm.audit.report.page import page
from keyseg_mm.audit.report.pictures import painted
from keyseg_mm.compare.methods import Method
from keyseg_mm.compare.rows import Figures
from keyseg_mm.compare.run import Subject
from keyseg_mm.compare.table import HEAD, cells, columns, verdict

FIGURES, TABLE, PAGE = 'compare.json', 'compare.md', 'compare.html'


@dataclass(frozen=True)
class Report:
    """What a comparison found: what its figures depend on, those of each config, and what they come to."""

    made_by: str
    when: str
    suite: str
    seed: int
    wrong_keys: int
    methods: Sequence[Method]
    subjects: Sequence[Figures]
    verdict: str

    @classmethod
    def of(cls, subjects: Sequence[Subject], methods: Sequence[Method]) -> Report:
        """What :func:`keyseg_mm.compare.run.compare` found."""
        found, choices = [subject.figures for subject in subjects], subjects[0].choices
        said = ' '.join(verdict(figures, choices.suite) for figures in found)
        when = time.strftime('%Y-%m-%d %H:%M')
        return cls(__version__, when, choices.suite, choices.seed, choices.wrong_keys, methods, found, said)

    def write(self, out: Path, subjects: Sequence[Subject]) -> Path:
        """Write the three files, all public, with pictures from the subjects; returns the page's path."""
        figures = [{**asdict(found), 'rows': [row.public() for row in found.rows]} for found in self.subjects]
        write_json(out / FIGURES, {'format': 'keyseg_mm compare', 'version': 1, **asdict(self), 'subjects': figures})
        _write_text(out / TABLE, self.as_markdown())
        _write_text(out / PAGE, self.as_page(subjects))
        return out / PAGE

    def as_markdown(self) -> str:
        """The tables, what the columns are, and what each method does and does not do."""
        parts = ['# Methods compared', self.verdict]
        for figures in self.subjects:
            rows = [HEAD, ['---'] * len(HEAD), *(cells(figures, row) for row in figures.rows)]
            table = ['| ' + ' | '.join(cell.replace('|', '\\|') for cell in row) + ' |' for row in rows]
            reasons = [f'- {row.title}: {row.status}: {row.why}' for row in figures.rows if row.why]
            parts += [f'## {figures.name}', '\n'.join(table), '\n'.join(reasons)]
        notes = [f'- **{m.title}** ({m.source}). {m.does} {m.lacks}' for m in self.methods]
        parts += [*columns(self.suite, self.wrong_keys), '\n'.join(notes)]
        return '\n\n'.join(filter(None, parts)) + '\n'

    def as_page(self, subjects: Sequence[Subject]) -> str:
        """The page, with the photos of the subjects and what each method makes of them."""
        return page(
            'compare.html.j2',
            Path(__file__).parent,
            report=self,
            head=HEAD,
            columns=columns(self.suite, self.wrong_keys),
            cells=cells,
            chart=_chart,
            painted=lambda labels, subject: [painted(label, subject.data.palette) for label in labels],
            subjects=list(zip(self.subjects, subjects)),
        )


def _write_text(path: Path, text: str) -> None:
    write_new(path, lambda file: file.write(text.encode('utf-8')), overwrite=True)


def _chart(figures: Figures) -> Markup:
    """Right key, no key and worst wrong key of each method, beside the floor."""
    groups: list[tuple[str, Any]] = []
    for row in figures.rows:
        values = (('right', row.right), ('none', row.without), ('wrong', row.worst))
        bars = [(style, value) for style, value in values if value is not None]
        groups += [(row.title, bars)] if bars else []
    return Markup(bar_chart(groups, figures.floor, 'mIoU'))  # noqa: S704 - made of numbers and escaped names
