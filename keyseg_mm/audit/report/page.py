"""What the audits' pages have in common: reading ``report.json``, rendering a template, writing ``report.html``.

A page is a Jinja2 template, which every torch brings along: it escapes whatever comes from files and attacks.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from keyseg_mm.atomic import write_new
from keyseg_mm.audit.model.summary import capitalise
from keyseg_mm.errors import KeysegError


def read_report(folder: Path, form: str) -> dict[str, Any]:
    """``report.json`` of a folder.

    Args:
        folder: of an audit.
        form: its format, for example ``'keyseg_mm audit'``.

    Raises:
        KeysegError: no report there, or one that this release does not read.
    """
    source = folder / 'report.json'
    try:
        report = json.loads(source.read_text(encoding='utf-8'))
    except OSError:
        raise KeysegError(f'{source}: no such file; run the audit first') from None
    except ValueError:
        raise KeysegError(f'{source} is damaged; run the audit again, which takes over its finished results') from None
    if not isinstance(report, dict) or report.get('format') != form or report.get('version') != 1:
        raise KeysegError(f'{source} is no audit report that this release reads')
    return report


def write_page(folder: Path, text: str) -> Path:
    """Write ``report.html`` beside ``report.json``; returns its path."""
    target = folder / 'report.html'
    write_new(target, lambda file: file.write(text.encode('utf-8')), overwrite=True)
    return target


def page(template: str, folder: Path | None = None, **values: Any) -> str:
    """A page as text: one file, without network, for screens, phones, paper and the dark.

    Args:
        template: its name.
        folder: where it lies, if not here.
        values: what it speaks of.
    """
    here = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader([here, *([folder] if folder else [])]),
        autoescape=select_autoescape(['j2', 'html']),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters['figure'] = figure
    environment.filters['percent'] = lambda value: '–' if value is None else f'{100 * value:.0f} %'
    environment.filters['capitalise'] = capitalise
    return environment.get_template(template).render(**values)


def figure(value: float | None, digits: int = 1) -> str:
    """A figure with so many digits behind the point."""
    return '–' if value is None else f'{round(value, digits) + 0.0:.{digits}f}'  # + 0.0: no negative zero
