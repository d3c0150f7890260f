"""Photos and label maps as base64 PNGs, so that a report is one file."""

from __future__ import annotations

import base64
import functools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import cv2
import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from numpy.typing import NDArray
from torch import Tensor

from keyseg_mm import __version__
from keyseg_mm.atomic import make_folder, write_json, write_new
from keyseg_mm.audit.engine.runner import Check, Failure, Outcome, to_json
from keyseg_mm.entries import describe

_WIDEST = 480  # pixels of a panel: a report is read, not measured
#: For classes beyond a data set's palette: hues that are far apart, at two brightnesses.
_SPARE = [[int(97 * i) % 256, int(57 * i + 80) % 256, int(151 * i + 160) % 256] for i in range(256)]
_HERE = Path(__file__).parent
#: Share of runs that may fail before the others are no audit any more.
FAILED = 0.25
#: Share of the way from the best control to the full mark from which a protection counts as fallen.
FALLEN = 0.5
_W = TypeVar('_W')


def png(labels: Tensor) -> str:
    """A label map (H, W) as a base64 PNG of one byte for each pixel."""
    return _encode(labels.clamp(0, 255).cpu().numpy().astype(np.uint8))


def unpng(text: str) -> NDArray[np.uint8]:
    """The label map of :func:`png`."""
    array = cv2.imdecode(np.frombuffer(base64.b64decode(text), np.uint8), cv2.IMREAD_UNCHANGED)
    return np.asarray(array, dtype=np.uint8)


def colour_png(picture: NDArray[Any], how: int = cv2.INTER_AREA) -> str:
    """An RGB picture (H, W, 3) as a base64 PNG, made no wider than a report shows it in one of OpenCV's ways."""
    height, width = picture.shape[:2]
    if width > _WIDEST:
        size = (_WIDEST, max(1, round(height * _WIDEST / width)))
        picture = cv2.resize(np.ascontiguousarray(picture), size, interpolation=how)
    return _encode(np.ascontiguousarray(picture[..., ::-1]))


def painted(text: str, palette: Sequence[Sequence[int]], ignore_index: int = 255) -> str:
    """A label map of :func:`png` in its classes' colours, as a base64 PNG; ignored pixels are black."""
    labels = unpng(text)
    colours = np.array([*palette, *_SPARE[len(palette) :]], dtype=np.uint8)[:256]
    if ignore_index < 256:
        colours[ignore_index] = 0
    return colour_png(colours[labels], cv2.INTER_NEAREST)


def _encode(array: NDArray[Any]) -> str:
    done, data = cv2.imencode('.png', array)
    if not done:
        raise RuntimeError('a picture could not be encoded as PNG')
    return base64.b64encode(data.tobytes()).decode('ascii')


@dataclass(frozen=True, kw_only=True)
class Report:
    """Base of reports; as a file one has its ``format``, too. ``config`` and ``checkpoint`` are names of files."""

    FORMAT: ClassVar[str]
    TEMPLATE: ClassVar[str]  # of the page
    WORDS: ClassVar[str]  # template of what it comes to
    suite: str
    seed: int
    config: str
    checkpoint: str | None
    positive: Check[Any]  # the true key scores full marks
    negative: Check[Any]  # a random key does not
    outcomes: tuple[Outcome, ...] = ()
    seconds: float = 0.0  # that the audit took
    version: int = 1
    made_by: str = __version__  # release of this package
    when: str = field(default_factory=functools.partial(time.strftime, '%Y-%m-%d %H:%M'))

    @property
    def is_void(self) -> bool:
        """Whether a check of the referee, or too many runs, failed."""
        failed = sum(isinstance(outcome, Failure) for outcome in self.outcomes)
        return not (self.positive.passed and self.negative.passed) or failed > FAILED * len(self.outcomes)

    def summary(self, advantages: tuple[Any, ...], best: Any, level: str, **told: Any) -> Summary[Any]:
        """What it comes to, with the words that a template has for a headline, a level, and what else it is told."""
        parts = ('verdict', 'means', 'change', 'warnings')
        said = [words(self.WORDS, part, report=self, best=best, level=level, **told) for part in parts]
        runs = words('runs.words.j2', 'warnings', outcomes=self.outcomes)
        return Summary(advantages, best, level, ' '.join(said[0]), said[1], said[2], (*runs, *said[3]))


@dataclass(frozen=True)
class Summary(Generic[_W]):
    """What an audit comes to."""

    advantages: tuple[_W, ...]  # best attack against best control, by what attackers have
    headline: _W | None  # the one that counts; None where no run was good for any
    level: str  # void (no audit at all), idle (nothing to steal), holds, leaks or falls
    verdict: str  # in a sentence
    means: tuple[str, ...]  # what that means, in paragraphs
    change: tuple[str, ...]  # what to do
    warnings: tuple[str, ...]  # what to bear in mind


def write_report(folder: Path, report: Report, summary: Summary[Any]) -> None:
    """Write ``report.json``, with what its figures come to, and the page."""
    make_folder(folder)
    found = {'format': report.FORMAT, **to_json(report), 'summary': to_json(summary)}
    write_json(folder / 'report.json', found, allow_nan=False)
    text = render(report, summary).encode('utf-8')
    write_new(folder / 'report.html', lambda file: file.write(text), overwrite=True)


def render(report: Report, summary: Summary[Any]) -> str:
    """The page of an audit as text."""
    return page(report.TEMPLATE, report=report, summary=summary)


def page(template: str, folder: Path | None = None, **values: Any) -> str:
    """A page as text, of a template here or in another folder, and of what it speaks of."""
    return _templates((_HERE, *([folder] if folder else [])), escape=True).get_template(template).render(**values)


def words(template: str, part: str, /, **values: Any) -> tuple[str, ...]:
    """The paragraphs that a macro of a template of words gives, as plain text."""
    macro = getattr(_templates((_HERE,), escape=False).get_template(template).module, part)
    paragraphs = (' '.join(text.split()) for text in str(macro(**values)).split('\n\n'))
    return tuple(text for text in paragraphs if text)


@functools.cache
def _templates(folders: tuple[Path, ...], escape: bool) -> Environment:
    how: Any = {'undefined': StrictUndefined, 'trim_blocks': True, 'lstrip_blocks': True}
    made = Environment(loader=FileSystemLoader(folders), autoescape=escape, **how)
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
