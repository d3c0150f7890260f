"""What all audits' reports have in common: ``report.json``, and ``report.html`` beside it.

A page is a Jinja2 template, which every torch brings along: it escapes whatever comes from files and attacks. It is one
file, without network, for screens, phones, paper and the dark.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from keyseg_mm import __version__
from keyseg_mm.atomic import make_folder, write_json, write_new
from keyseg_mm.audit.engine.results import Failure, Result, S, failed, to_json
from keyseg_mm.audit.report.pictures import painted
from keyseg_mm.entries import describe

_HERE = Path(__file__).parent
#: Share of runs that may fail before the others are no audit any more.
FAILED = 0.25
#: Share of the way from the best control to the full mark from which a protection counts as fallen.
FALLEN = 0.5
_W = TypeVar('_W')


@dataclass(frozen=True, kw_only=True)
class Report:
    """Base of reports; as a file one has its ``format``, too."""

    FORMAT: ClassVar[str]
    TEMPLATE: ClassVar[str]  # of the page
    suite: str
    seed: int
    seconds: float = 0.0  # that the audit took
    version: int = 1
    made_by: str = __version__  # release of this package
    when: str = field(default_factory=functools.partial(time.strftime, '%Y-%m-%d %H:%M'))


@dataclass(frozen=True)
class Summary(Generic[_W]):
    """What an audit comes to.

    Attributes:
        advantages: best attack against best control, by what attackers have.
        headline: the one that counts; None where no run was good for any.
        level: ``void`` (no audit at all), ``idle`` (nothing to steal), ``holds``, ``leaks`` or ``falls``.
        verdict: in a sentence.
        means: what that means, in paragraphs.
        change: what to do.
        warnings: what to bear in mind.
    """

    advantages: tuple[_W, ...]
    headline: _W | None
    level: str
    verdict: str
    means: tuple[str, ...]
    change: tuple[str, ...]
    warnings: tuple[str, ...]


def write_report(folder: Path, report: Report, summary: Summary[Any]) -> None:
    """Write ``report.json``, with what its figures come to, and the page."""
    make_folder(folder)
    write_json(
        folder / 'report.json',
        {'format': report.FORMAT, **to_json(report), 'summary': to_json(summary)},
        allow_nan=False,
    )
    text = render(report, summary).encode('utf-8')
    write_new(folder / 'report.html', lambda file: file.write(text), overwrite=True)


def render(report: Report, summary: Summary[Any]) -> str:
    """The page of an audit as text."""
    return page(report.TEMPLATE, report=report, summary=summary)


def page(template: str, folder: Path | None = None, **values: Any) -> str:
    """A page as text.

    Args:
        template: its name.
        folder: where it lies, if not here.
        values: what it speaks of.
    """
    return _templates((_HERE, *([folder] if folder else [])), escape=True).get_template(template).render(**values)


def words(template: str, part: str, /, **values: Any) -> tuple[str, ...]:
    """The paragraphs that a macro of a template of words gives, as plain text."""
    macro = getattr(_templates((_HERE,), escape=False).get_template(template).module, part)
    paragraphs = (' '.join(text.split()) for text in str(macro(**values)).split('\n\n'))
    return tuple(text for text in paragraphs if text)


def run_warnings(outcomes: Sequence[Result[S] | Failure]) -> tuple[str, ...]:
    """Runs that failed, or were cut short."""
    return words('runs.words.j2', 'warnings', outcomes=outcomes)


def is_void(checks: Sequence[bool], outcomes: Sequence[Result[S] | Failure]) -> bool:
    """Whether a check of the referee, or too many runs, failed."""
    return not all(checks) or len(failed(outcomes)) > FAILED * len(outcomes)


@functools.cache
def _templates(folders: tuple[Path, ...], escape: bool) -> Environment:
    made = Environment(
        loader=FileSystemLoader(folders),
        autoescape=escape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = (figure, percent, capitalise, decibels, painted, describe)
    made.filters.update({each.__name__: each for each in filters})
    return made


def capitalise(text: str) -> str:
    """A text with a capital first letter and nothing else changed."""
    return text[:1].upper() + text[1:]


def decibels(value: float) -> str:
    """A PSNR in words."""
    return f'{value:.1f} dB' if math.isfinite(value) else '∞ dB'


def figure(value: float | None, digits: int = 1) -> str:
    """A figure with so many digits behind the point."""
    return '–' if value is None else f'{round(value, digits) + 0.0:.{digits}f}'  # + 0.0: no negative zero


def percent(share: float | None) -> str:
    """A share in percent."""
    return '–' if share is None else f'{100 * share:.0f} %'
