"""What a comparison writes in the end: compare.json, compare.md and compare.html, one page without network."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from keyseg_mm import __version__
from keyseg_mm.atomic import write_json, write_new
from keyseg_mm.audit.report.charts import bar_chart
from keyseg_mm.audit.report.page import page
from keyseg_mm.audit.report.pictures import painted
from keyseg_mm.compare.choices import NONE, RIGHT, Choices
from keyseg_mm.compare.methods import PLAIN, Method
from keyseg_mm.compare.run import Subject
from keyseg_mm.compare.table import HEAD, cells, columns, markdown, verdict, worst

FIGURES, TABLE, PAGE = 'compare.json', 'compare.md', 'compare.html'


def assemble(
    subjects: Sequence[Subject],
    methods: Sequence[Method],
    rows: Sequence[Sequence[Mapping[str, Any]]],
    choices: Choices,
) -> dict[str, Any]:
    """All figures of a comparison, as compare.json has them; all public.

    Args:
        subjects: the configs.
        methods: applied to each.
        rows: of each config, one for each method.
        choices: what they depend on.
    """
    found = [
        {'name': s.folder.name, 'config': s.config.name, 'rows': r, **{n: s.facts[n] for n in ('floor', 'photos')}}
        for s, r in zip(subjects, map(list, rows))
    ]
    return {
        'format': 'keyseg_mm compare',
        'version': 1,
        'made_by': __version__,
        'when': time.strftime('%Y-%m-%d %H:%M'),
        'seed': choices.seed,
        'suite': choices.suite,
        'wrong_keys': choices.wrong_keys,
        'methods': [{n: getattr(m, n) for n in ('name', 'title', 'does', 'lacks', 'source')} for m in methods],
        'subjects': found,
        'verdict': verdict(found, choices.suite),
    }


def write(out: Path, report: dict[str, Any], subjects: Sequence[Subject], methods: Sequence[Method]) -> Path:
    """Write the three files; returns the page's path."""
    write_json(out / FIGURES, report)
    page = render(report, [sights(subject, methods) for subject in subjects])
    for name, text in ((TABLE, markdown(report)), (PAGE, page)):
        _write_text(out / name, text)
    return out / PAGE


def _write_text(path: Path, text: str) -> None:
    write_new(path, lambda file: file.write(text.encode('utf-8')), overwrite=True)


def sights(subject: Subject, methods: Sequence[Method]) -> list[dict[str, Any]]:
    """The shown photos, and what each method makes of them: label maps painted, as base64 PNGs, in strips."""
    facts = subject.facts
    palette, shown = facts['palette'], facts['shown']
    truth = [painted(picture['truth'], palette) for picture in shown]
    photos = [picture['photo'] for picture in shown]
    strips = [{'who': '', 'title': name, 'images': images} for name, images in (('photo', photos), ('truth', truth))]
    found: list[dict[str, Any]] = [{'name': '', 'title': 'test photos', 'strips': strips}]
    for method in methods:
        pictures = subject.pictures(method)
        words = {RIGHT: 'right key' if method.name != PLAIN else 'as it is', NONE: 'no key'}
        strips = [
            {'who': who, 'title': words[who], 'images': [painted(label, palette) for label in labels]}
            for who, labels in pictures.items()
        ]
        if strips:
            found.append({'name': method.name, 'title': method.title, 'strips': strips})
    return found if shown else []


def render(report: Mapping[str, Any], pictures: Sequence[Sequence[Mapping[str, Any]]]) -> str:
    """The page as text.

    Args:
        report: of :func:`assemble`.
        pictures: of :func:`sights`, for each config.
    """
    shown = max((len(s['images']) for found in pictures for sight in found for s in sight['strips']), default=1)
    return page(
        'compare.html.j2',
        Path(__file__).parent,
        report=report,
        head=HEAD,
        shown=shown,
        columns=columns(report),
        subjects=[_on_page(subject, found) for subject, found in zip(report['subjects'], pictures)],
    )


def _on_page(subject: Mapping[str, Any], pictures: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    rows = [{**row, 'cells': cells(subject, row)} for row in subject['rows']]
    miou = {row['name']: row['miou'] for row in rows}
    found = [
        {**p, 'strips': [{**s, 'miou': miou.get(p['name'], {}).get(s['who'])} for s in p['strips']]} for p in pictures
    ]
    chart = Markup(_chart(subject))  # noqa: S704 - made of numbers and escaped names
    return {**subject, 'rows': rows, 'sights': found, 'photos_shown': bool(found), 'chart': chart}


def _chart(subject: Mapping[str, Any]) -> str:
    """Right key, no key and worst wrong key of each method, beside the floor."""
    groups = []
    for row in subject['rows']:
        values = (('right', row['miou'].get(RIGHT)), ('none', row['miou'].get(NONE)), ('wrong', worst(row)))
        bars = [(style, value) for style, value in values if value is not None]
        if bars:
            groups.append((row['title'], bars))
    return bar_chart(groups, subject['floor'], 'mIoU')
