"""What the figures of an audit of images come to: headlines, the verdict in a sentence, what it means, what to do.

For each of three attackers (encrypted images alone; other photos too; known pairs too) the headline is the SSIM of the
best attack less that of the best control. Who has more can do all that who has less does. Known pairs do not count for
the verdict: these encryptions are the same for every block, and no such one withstands them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from keyseg_mm.audit.engine.results import Result, Scored, finished
from keyseg_mm.audit.images.report import ImageReport
from keyseg_mm.audit.images.scoring import ImageScore
from keyseg_mm.audit.report.summary import FALLEN, Summary, capitalise, is_void, run_warnings

#: SSIM below which an advantage is no more than chance of these few photos.
NOISE = 0.03
GROUPS = {'images': 'encrypted images alone', 'photos': 'and other photos', 'pairs': 'and known pairs'}
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
    level = _level(report, headline)
    return Summary(
        advantages=rows,
        headline=headline,
        level=level,
        verdict=_verdict(report, rows, headline, level),
        means=_means(report, rows, level),
        change=_change(rows, level),
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


def decibels(value: float) -> str:
    """A PSNR in words."""
    return f'{value:.1f} dB' if math.isfinite(value) else 'infinite'


def _nearness(score: ImageScore) -> str:
    """How near a restoration comes, in words."""
    if score.exact == 1.0:
        return 'restores them bit for bit'
    return f'restores them to SSIM {score.ssim:.2f} (PSNR {decibels(score.psnr)})'


def _verdict(report: ImageReport, rows: Sequence[Gain], headline: Gain | None, level: str) -> str:
    if level == 'void' or headline is None:
        return 'This audit is void, and says nothing of the images: a check of the referee, or too many runs, failed.'
    attack, control = headline.attack, headline.control
    has = f'{report.images} encrypted images'
    if 'public' in attack.about.needs or headline.group == 'photos':
        has += f', {report.photos} other photos'
    versus = (
        f'with {has}, no key and no known image, {attack.about.title} {_nearness(attack.score)}, where '
        f'{control.about.title} gives {control.score.ssim:.2f}'
    )
    pairs = [row.attack for row in rows if row.group == 'pairs']
    known = f'; with known pairs, {pairs[0].about.title} {_nearness(pairs[0].score)}' if pairs else ''
    return {
        'holds': f'No attack of this {report.suite} suite restores more than is seen without breaking anything: '
        f'{versus}{known}.',
        'leaks': f'These images show part of what they hide: {versus}{known}.',
        'falls': f'These images can be restored: {versus}{known}.',
    }[level]


def _means(report: ImageReport, rows: Sequence[Gain], level: str) -> tuple[str, ...]:
    said = []
    for row in rows:
        gain = f'{row.advantage:+.2f} SSIM' + (f', {row.psnr:+.1f} dB' if row.psnr is not None else '')
        said.append(
            f'{capitalise(row.title)}: {row.attack.about.title} {_nearness(row.attack.score)}; the best control, '
            f'{row.control.about.title}, has {row.control.score.ssim:.2f} ({gain}).'
        )
    own = report.key_spaces[0]
    said.append(
        f'There are 2^{own.ciphers:.0f} such ciphers, and the key has 256 bits. Nobody has to guess, though: '
        f'every block of every image is encrypted alike, so statistics and pairs find {own.unknowns} one by one.'
    )
    if level in ('holds', 'leaks'):
        said.append(
            'What an attack reaches is certain; what none reaches is only not shown. More images, larger ones and more '
            'time may do more.'
        )
    return tuple(said)


def _change(rows: Sequence[Gain], level: str) -> tuple[str, ...]:
    said = []
    if level in ('falls', 'leaks'):
        said.append(
            'Count on these images being seen: send and store them under real encryption (TLS, AES-GCM), and take the '
            'block-wise encryption for what it is, access control to a model.'
        )
        said.append(
            'A larger block and another key for every small set of images make the statistics poorer; audit again to '
            'see by how much. No block size helps where many images share a key.'
        )
    if any(row.group == 'pairs' and row.advantage > NOISE for row in rows):
        said.append(
            'Never let an image be had both plain and encrypted, nor encrypt images that somebody else chooses: one '
            'pair opens all images of that key and salt. Change the key if it happened.'
        )
    if level == 'holds':
        said.append('Run the standard or full suite, with more images, before you rely on it.')
    return tuple(said or ['Audit again when what failed is mended.'])


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
