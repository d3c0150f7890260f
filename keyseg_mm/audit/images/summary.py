"""What the figures of an audit of images come to: headlines, the verdict in a sentence, what it means, what to do.

For each of three attackers (encrypted images alone; photos of his own too; known pairs too) the headline is the SSIM of
the best attack less that of the best control. Who has more can do all that who has less does. Known pairs do not count
for the verdict: these encryptions are the same for every block, and no such one withstands them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from keyseg_mm.audit.model.summary import capitalise

Report = Mapping[str, Any]
Result = Mapping[str, Any]

#: SSIM below which an advantage is no more than chance of these few photos.
NOISE = 0.03
#: Share of the way from the best control to the plain image from which images count as restored.
FALLEN = 0.5
#: Share of runs that may fail before the others are no audit any more.
FAILED = 0.25
GROUPS = {'images': 'encrypted images alone', 'photos': 'and photos of his own', 'pairs': 'and known pairs'}


def summarise(report: Report) -> dict[str, Any]:
    """Headlines, verdict and advice from the figures of a report.

    Args:
        report: facts, ``checks`` and ``results`` of an audit of images.

    Returns:
        ``advantages`` by attacker, ``headline`` (the largest without known pairs), ``level``, ``verdict``, ``means``,
        ``change`` and ``warnings``.
    """
    rows = [row for group in GROUPS if (row := _advantage(report['results'], group))]
    without = [row for row in rows if row['group'] != 'pairs']
    headline = max(without, key=lambda row: row['advantage'], default=None)
    level = _level(report, headline)
    return {
        'advantages': rows,
        'headline': headline,
        'level': level,
        'verdict': _verdict(report, rows, headline, level),
        'means': _means(report, rows, level),
        'change': _change(report, rows, level),
        'warnings': _warnings(report),
    }


def _advantage(results: Sequence[Result], group: str) -> dict[str, Any] | None:
    """Best attack against best control of an attacker; None where one of both is missing."""
    order = list(GROUPS)
    usable = [r for r in results if not r['error'] and order.index(r['group']) <= order.index(group)]
    kinds = [[r for r in usable if r['kind'] == kind] for kind in ('attack', 'control')]
    if not all(kinds):
        return None
    attack, control = (max(found, key=lambda r: (*rank(r), order.index(r['group']))) for found in kinds)
    gain, gap = attack['ssim'] - control['ssim'], 1 - control['ssim']
    decibels = [r['psnr'] for r in (attack, control)]
    return {
        'group': group,
        'title': GROUPS[group],
        'attack': _short(attack),
        'control': _short(control),
        'advantage': gain,
        'psnr': None if None in decibels else decibels[0] - decibels[1],
        'of_the_gap': gain / gap if gap > NOISE else None,
    }


def rank(result: Result) -> tuple[float, float, bool]:
    """By SSIM, then by PSNR (None is infinite), then those that also found the cipher."""
    return round(result['ssim'], 6), float('inf') if result['psnr'] is None else result['psnr'], bool(result['found'])


def _short(result: Result) -> dict[str, Any]:
    names = ('name', 'title', 'needs', 'situation', 'psnr', 'ssim', 'edges', 'exact', 'found')
    return {name: result[name] for name in names}


def _level(report: Report, headline: Mapping[str, Any] | None) -> str:
    """``void``, ``holds``, ``leaks`` or ``falls``."""
    failed = [r for r in report['results'] if r['error']]
    passed = all(check['passed'] for check in report['checks'].values())
    if headline is None or not passed or len(failed) > FAILED * len(report['results']):
        return 'void'
    if headline['advantage'] <= NOISE:
        return 'holds'
    return 'falls' if headline['of_the_gap'] is not None and headline['of_the_gap'] >= FALLEN else 'leaks'


def likeness_words(result: Result) -> str:
    """How near a restoration comes, in words."""
    if result['exact'] == 1.0:
        return 'restores them bit for bit'
    return f'restores them to SSIM {result["ssim"]:.2f} (PSNR {decibels(result["psnr"])})'


def decibels(value: float | None) -> str:
    """A PSNR in words; None is an infinite one."""
    return 'infinite' if value is None else f'{value:.1f} dB'


def _verdict(report: Report, rows: Sequence[Mapping[str, Any]], headline: Mapping[str, Any] | None, level: str) -> str:
    if level == 'void' or headline is None:
        return 'This audit is void, and says nothing of the images: a check of the referee, or too many runs, failed.'
    attack, control = headline['attack'], headline['control']
    has = f'{report["images"]} encrypted images'
    if 'public' in attack['needs'] or headline['group'] == 'photos':
        has += f', {report["photos"]} other photos'
    versus = (
        f'with {has}, no key and no known image, {attack["title"]} {likeness_words(attack)}, where '
        f'{control["title"]} gives {control["ssim"]:.2f}'
    )
    pairs = [row for row in rows if row['group'] == 'pairs']
    known = f'; with known pairs, {pairs[0]["attack"]["title"]} {likeness_words(pairs[0]["attack"])}' if pairs else ''
    return {
        'holds': f'No attack of this {report["suite"]} suite restores more than is seen without breaking anything: '
        f'{versus}{known}.',
        'leaks': f'These images show part of what they hide: {versus}{known}.',
        'falls': f'These images can be restored: {versus}{known}.',
    }[level]


def _means(report: Report, rows: Sequence[Mapping[str, Any]], level: str) -> list[str]:
    said = []
    for row in rows:
        attack, control = row['attack'], row['control']
        gain = f'{row["advantage"]:+.2f} SSIM'
        if row['psnr'] is not None:
            gain += f', {row["psnr"]:+.1f} dB'
        said.append(
            f'{capitalise(row["title"])}: {attack["title"]} {likeness_words(attack)}; the best control, '
            f'{control["title"]}, has {control["ssim"]:.2f} ({gain}).'
        )
    own = report['key_spaces'][0]
    said.append(
        f'There are 2^{own["ciphers"]:.0f} such ciphers, and the key has 256 bits. Nobody has to guess, though: '
        f'every block of every image is encrypted alike, so statistics and pairs find {own["unknowns"]} one by one.'
    )
    if level in ('holds', 'leaks'):
        said.append(
            'What an attack reaches is certain; what none reaches is only not shown. More images, larger ones and more '
            'time may do more.'
        )
    return said


def _change(report: Report, rows: Sequence[Mapping[str, Any]], level: str) -> list[str]:
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
    if any(row['group'] == 'pairs' and row['advantage'] > NOISE for row in rows):
        said.append(
            'Never let an image be had both plain and encrypted, nor encrypt images that somebody else chooses: one '
            'pair opens all images of that key and salt. Change the key if it happened.'
        )
    if level == 'holds':
        said.append('Run the standard or full suite, with more images, before you rely on it.')
    return said or ['Audit again when what failed is mended.']


def _warnings(report: Report) -> list[str]:
    said = []
    for result in report['results']:
        if result['error']:
            where = f'{capitalise(result["title"])} ({result["situation_title"]})'
            said.append(f'{where} failed and counts for nothing: {result["error"]}')
    cut = sorted({r['title'] for r in report['results'] if r.get('exhausted')})
    if cut:
        said.append(f'The budget ended runs before they were done: {", ".join(cut)}.')
    full, size = report['full_size'], report['size']
    if list(full) != list(size):
        said.append(
            f'Images of {full[1]} x {full[0]} pixels were scaled to {size[1]} x {size[0]}. At full size neighbours are '
            'more alike and blocks more numerous, which attackers like: --suite full keeps the size.'
        )
    if report['images'] < 8:
        said.append(f'Only {report["images"]} images under attack: statistics get better with more of them.')
    return said
