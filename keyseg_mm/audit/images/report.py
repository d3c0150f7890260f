"""What an audit of encrypted images reports in ``report.json``, and what it comes to.

For each of three attackers (encrypted images alone; other photos too; known pairs too) the headline is the SSIM of the
best attack less that of the best control. Who has more can do all that who has less does. Known pairs do not count for
the verdict: these encryptions are the same for every block, and no such one withstands them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from keyseg_mm.audit.engine.results import Check, Failure, Result, Scored, finished
from keyseg_mm.audit.engine.suites import Suite
from keyseg_mm.audit.images.scheme import Scheme
from keyseg_mm.audit.images.scoring import ImageScore
from keyseg_mm.audit.report.page import FALLEN, Report, Summary, is_void, run_warnings, words

#: SSIM below which an advantage is no more than chance of these few photos.
NOISE = 0.03
#: What attackers have, by the names of their scenarios.
ATTACKERS = {'images': 'encrypted images alone', 'photos': 'and other photos', 'pairs': 'and known pairs'}
_WORDS = 'images.words.j2'


@dataclass(frozen=True, kw_only=True)
class ImageReport(Report):
    """Of a whole audit. The plain images that it shows are for their owner."""

    FORMAT: ClassVar[str] = 'keyseg_mm audit of images'
    TEMPLATE: ClassVar[str] = 'images.html.j2'
    config: str
    checkpoint: str | None  # that said how images are encrypted
    scheme: Scheme
    ciphers: float  # log2 of how many there are of that scheme
    limits: Suite
    images: int  # under attack
    photos: int  # of the attacker's
    size: tuple[int, ...]  # height and width of both
    positive: Check[ImageScore]  # the true key scores full marks
    negative: Check[ImageScore]  # random keys do not
    plain: tuple[str, ...]  # images that are shown, as base64 PNGs
    encrypted: tuple[str, ...]
    outcomes: tuple[Result[ImageScore] | Failure, ...] = ()


@dataclass(frozen=True)
class Gain:
    """Best attack against best control of one attacker."""

    has: str  # which attacker, see ATTACKERS
    attack: Scored[ImageScore]
    control: Scored[ImageScore]
    advantage: float  # SSIM between both

    @property
    def title(self) -> str:
        """What the attacker has, in words."""
        return ATTACKERS[self.has]


def summarise(report: ImageReport) -> Summary[Gain]:
    """Headlines, verdict and advice from the figures of a report."""
    rows = tuple(row for has in ATTACKERS if (row := _gain(report, has)))
    headline = max((row for row in rows if row.has != 'pairs'), key=lambda row: row.advantage, default=None)
    pairs = next((row for row in rows if row.has == 'pairs'), None)
    level, told = _level(report, headline), {'best': headline, 'pairs': pairs}
    return Summary(
        advantages=rows,
        headline=headline,
        level=level,
        verdict=' '.join(words(_WORDS, 'verdict', report=report, level=level, **told)),
        means=words(_WORDS, 'means', report=report, rows=rows, level=level),
        change=words(_WORDS, 'change', pairs_help=pairs is not None and pairs.advantage > NOISE, level=level),
        warnings=(*run_warnings(report.outcomes), *words(_WORDS, 'warnings', report=report)),
    )


def _rank(score: ImageScore) -> tuple[float, ...]:
    """By SSIM, then by PSNR, then those that also found the cipher."""
    return round(score.ssim, 6), score.psnr, float(bool(score.found))


def _has(result: Result[ImageScore]) -> int:
    """How far down in the list of attackers a run was made."""
    return list(ATTACKERS).index(result.about.scenario)


def _gain(report: ImageReport, has: str) -> Gain | None:
    """Best attack against best control of an attacker; None where one of both is missing."""
    usable = [r for r in finished(report.outcomes) if _has(r) <= list(ATTACKERS).index(has)]
    usable.sort(key=lambda result: (*_rank(result.score), _has(result)), reverse=True)
    attacks, controls = finished(usable, 'attack'), finished(usable, 'control')
    if not attacks or not controls:
        return None
    return Gain(has, attacks[0].bare(), controls[0].bare(), attacks[0].score.ssim - controls[0].score.ssim)


def _level(report: ImageReport, headline: Gain | None) -> str:
    """``void``, ``holds``, ``leaks`` or ``falls``."""
    if headline is None or is_void([report.positive.passed, report.negative.passed], report.outcomes):
        return 'void'
    if headline.advantage <= NOISE:
        return 'holds'
    return 'falls' if headline.advantage >= FALLEN * (1 - headline.control.score.ssim) else 'leaks'
