"""What the figures of an audit of images come to: headlines, the verdict in a sentence, what it means, what to do.

For each of three attackers (encrypted images alone; other photos too; known pairs too) the headline is the SSIM of the
best attack less that of the best control. Who has more can do all that who has less does. Known pairs do not count for
the verdict: these encryptions are the same for every block, and no such one withstands them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from keyseg_mm.audit.engine.results import Result, Scored, finished
from keyseg_mm.audit.images.report import ImageReport
from keyseg_mm.audit.images.scoring import ImageScore
from keyseg_mm.audit.report.page import words
from keyseg_mm.audit.report.summary import FALLEN, Summary, is_void, run_warnings

#: SSIM below which an advantage is no more than chance of these few photos.
NOISE = 0.03
GROUPS = {'images': 'encrypted images alone', 'photos': 'and other photos', 'pairs': 'and known pairs'}
_WORDS = 'images.words.j2'
_FEW = 8  # images below which statistics are poor


@dataclass(frozen=True)
class Gain:
    """Best attack against best control of one attacker."""

    group: str  # which attacker, see GROUPS
    title: str
    attack: Scored[ImageScore]
    control: Scored[ImageScore]
    advantage: float  # SSIM between both
    psnr: float | None  # dB between both; None where one of them is infinite
    of_the_gap: float | None  # between control and plain image; None where that is little


def summarise(report: ImageReport) -> Summary[Gain]:
    """Headlines, verdict and advice from the figures of a report."""
    rows = tuple(row for group in GROUPS if (row := _gain(report, group)))
    headline = max((row for row in rows if row.group != 'pairs'), key=lambda row: row.advantage, default=None)
    pairs = next((row for row in rows if row.group == 'pairs'), None)
    level, told = _level(report, headline), {'best': headline, 'pairs': pairs}
    return Summary(
        advantages=rows,
        headline=headline,
        level=level,
        verdict=' '.join(words(_WORDS, 'verdict', report=report, level=level, **told)),
        means=words(_WORDS, 'means', report=report, rows=rows, level=level),
        change=words(_WORDS, 'change', pairs_help=pairs is not None and pairs.advantage > NOISE, level=level),
        warnings=_warnings(report),
    )


def rank(score: ImageScore) -> tuple[float, ...]:
    """By SSIM, then by PSNR, then those that also found the cipher."""
    return round(score.ssim, 6), score.psnr, float(bool(score.found))


def _gain(report: ImageReport, group: str) -> Gain | None:
    """Best attack against best control of an attacker; None where one of both is missing."""
    order = list(GROUPS)
    usable = [r for r in finished(report.outcomes) if order.index(r.about.group) <= order.index(group)]

    def key(result: Result[ImageScore]) -> tuple[float, ...]:
        return (*rank(result.score), order.index(result.about.group))

    attack = max(finished(usable, 'attack'), key=key, default=None)
    control = max(finished(usable, 'control'), key=key, default=None)
    if attack is None or control is None:
        return None
    gain, gap = attack.score.ssim - control.score.ssim, 1 - control.score.ssim
    decibels = attack.score.psnr - control.score.psnr
    return Gain(
        group=group,
        title=GROUPS[group],
        attack=attack.bare(),
        control=control.bare(),
        advantage=gain,
        psnr=decibels if math.isfinite(decibels) else None,
        of_the_gap=gain / gap if gap > NOISE else None,
    )


def _level(report: ImageReport, headline: Gain | None) -> str:
    """``void``, ``holds``, ``leaks`` or ``falls``."""
    if headline is None or is_void([report.positive.passed, report.negative.passed], report.outcomes):
        return 'void'
    if headline.advantage <= NOISE:
        return 'holds'
    return 'falls' if headline.of_the_gap is not None and headline.of_the_gap >= FALLEN else 'leaks'


def _warnings(report: ImageReport) -> tuple[str, ...]:
    said, full, size = run_warnings(report.outcomes), report.full_size, report.size
    if tuple(full) != tuple(size):
        said.append(
            f'Images of {full[1]} x {full[0]} pixels were scaled to {size[1]} x {size[0]}. At full size neighbours are '
            'more alike and blocks more numerous, which attackers like: --suite full keeps the size.'
        )
    if report.images < _FEW:
        said.append(f'Only {report.images} images under attack: statistics get better with more of them.')
    return tuple(said)
