"""Attack advantage: best attack mIoU - best control mIoU at the same data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Report = Mapping[str, Any]
Result = Mapping[str, Any]

#: mIoU points below which an advantage is no more than the noise of small trainings and few photos.
NOISE = 1.0
#: mIoU points between authorised model and best control below which there is little to steal.
LITTLE = 3.0
#: Share of runs that may fail before the others are no audit any more.
FAILED = 0.25

NO_KEY = 'no-key'


def advantage(report: Report, share: float | None) -> dict[str, Any]:
    """Best attack against best control for an attacker with a share of the photos, or with none."""
    usable = [r for r in report['results'] if not r['error'] and r['share'] in (None, share) and not r['beyond_files']]
    attacks = [_as_is(report), *(r for r in usable if r['kind'] == 'attack')]
    controls = [floor_of(report), *(r for r in usable if r['kind'] == 'control')]
    attack, control = (max(found, key=lambda r: r['miou']) for found in (attacks, controls))
    photos = max((r['photos'] for r in usable if r['share'] == share), default=0)
    gain = attack['miou'] - control['miou']
    gap = report['authorised']['miou'] - control['miou']
    return {
        'share': share,
        'photos': photos,
        'attack': short(attack),
        'control': short(control),
        'advantage': gain,
        'of_the_gap': gain / gap if gap > LITTLE else None,
    }


def _as_is(report: Report) -> dict[str, Any]:
    """Running the file as it is counts as an attack like any other."""
    about = {'name': NO_KEY, 'title': 'the file as it is, without a key', 'needs': [], 'family': 'recover'}
    return {**about, **report['no_key'], 'recovery': None, 'situation': 'file'}


def floor_of(report: Report) -> dict[str, Any]:
    """The constant guess as a control like any other."""
    about = {'name': 'constant', 'title': 'one class everywhere', 'needs': [], 'family': 'retrain'}
    return {**about, 'miou': report['floor'], 'agreement': None, 'kappa': 0.0, 'recovery': None, 'situation': 'file'}


def short(result: Result) -> dict[str, Any]:
    """What the summary says of a result."""
    names = ('name', 'title', 'needs', 'family', 'situation', 'miou', 'agreement', 'kappa', 'recovery')
    return {name: result[name] for name in names}
