"""What a comparison writes in the end: compare.json, compare.md and compare.html, one page without network."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from keyseg_mm import __version__
from keyseg_mm.compare.folder import write_json
from keyseg_mm.compare.methods import Method
from keyseg_mm.compare.run import Choices, Subject
from keyseg_mm.compare.table import markdown, verdict
from keyseg_mm.files import write_new

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
    write_new(out / TABLE, lambda file: file.write(markdown(report).encode('utf-8')), overwrite=True)
    return out / PAGE
