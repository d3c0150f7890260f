"""What an audit's figures come to: the headline, the verdict in a sentence, what it means and what to change.

The headline is *attack advantage* = best attack mIoU - best control mIoU at the same data. An attack that needs no
photos can be used by whoever has some, so it counts at every share. Attacks that were granted part of the key or an
authorised run are told of, and do not count: against those a lock on a file promises nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from keyseg_mm.audit.engine.targets import BLOCKS, IMAGES, MAPS, WEIGHTS
from keyseg_mm.audit.model.advantage import FAILED, LITTLE, NOISE, Report, Result, advantage, short
from keyseg_mm.audit.model.spectra import CLOSE
from keyseg_mm.audit.model.transfer_summary import transferred

#: What may help where something else than channel maps at points is encrypted.
_OTHERS = {
    BLOCKS: 'A few maps behind which all weights are plain are learnt from photos, or trained away: encrypt more of '
    'the model, by a lock at points=linear with signs, or by --scheme tensors.',
    WEIGHTS: 'Encrypt more of the weights (a larger --share of --scheme selective, or all by --scheme tensors), '
    'and not those of a model that is close to public weights: ranks put them in order again.',
    IMAGES: 'The weights are plain, and plain images may be near enough to encrypted ones to go on from there. '
    'Encrypt feature maps or weights where the model itself is to be protected; larger blocks leave more to learn.',
}
#: Share of the way from the best control to the authorised model from which a lock counts as fallen.
FALLEN = 0.5


def summarise(report: Report) -> dict[str, Any]:
    """Headline, verdict and advice from the figures of a report.

    Args:
        report: facts, ``checks`` and ``results`` of an audit.

    Returns:
        ``advantages`` by share, ``headline`` (the largest of them), ``beyond`` (best attack of each situation that
        grants more than files), ``transfer`` (of :func:`~keyseg_mm.audit.model.transfer_summary.transferred`),
        ``level``, ``verdict``, ``means``, ``change`` and ``warnings``.
    """
    shares = sorted({r['share'] for r in report['results'] if r['share'] is not None})
    advantages = [advantage(report, share) for share in (None, *shares)]
    headline = max(advantages, key=lambda a: a['advantage'])
    level, beyond, transfer = _level(report, headline), _beyond(report['results']), transferred(report)
    return {
        'advantages': advantages,
        'headline': headline,
        'beyond': beyond,
        'transfer': transfer,
        'level': level,
        'verdict': _verdict(report, headline, level),
        'means': [*_means(report, level), *_more_than_files(beyond), *_elsewhere(transfer)],
        'change': _change(report, headline, level),
        'warnings': _warnings(report),
    }


def _beyond(results: Sequence[Result]) -> list[dict[str, Any]]:
    best: dict[str, Result] = {}
    for result in results:
        if result['beyond_files'] and not result['error'] and result['kind'] == 'attack':
            name = result['situation']
            best[name] = max(best.get(name, result), result, key=lambda r: r['miou'])
    return [{**short(r), 'situation_title': r['situation_title'], 'key_share': r['key_share']} for r in best.values()]


def _level(report: Report, headline: Mapping[str, Any]) -> str:
    """``void``, ``idle``, ``holds``, ``leaks`` or ``falls``."""
    counted = [r for r in report['results'] if not r['beyond_files']]
    failed = [r for r in counted if r['error']]
    if not all(check['passed'] for check in report['checks'].values()) or len(failed) > FAILED * len(counted):
        return 'void'
    if report['authorised']['miou'] - report['floor'] < LITTLE:
        return 'idle'
    recovered = max((r['recovery'] or 0.0 for r in _own_attacks(report)), default=0.0)
    share = headline['of_the_gap']
    if headline['advantage'] > NOISE and (recovered > 0.9 or (share is not None and share >= FALLEN)):
        return 'falls'
    return 'leaks' if headline['advantage'] > NOISE else 'holds'


def _own_attacks(report: Report) -> list[Result]:
    return [r for r in report['results'] if r['kind'] == 'attack' and not r['error'] and not r['beyond_files']]


def _verdict(report: Report, headline: Mapping[str, Any], level: str) -> str:
    full, floor = report['authorised']['miou'], report['floor']
    attack, control = headline['attack'], headline['control']
    gain = f'{headline["advantage"]:+.1f}'
    photos = f'{headline["photos"]} photos' if headline['photos'] else 'no photos'
    versus = (
        f'with {photos} and no key, {attack["title"]} reaches {attack["miou"]:.1f} mIoU; without the file, '
        f'{control["title"]} gives {control["miou"]:.1f}; the right key gives {full:.1f}'
    )
    trusted = all(check['passed'] for check in report['checks'].values())
    return {
        'void': 'This audit is void, and says neither that the lock holds nor that it falls: '
        + ('too many of its runs failed.' if trusted else 'the referee failed its own checks.'),
        'idle': f'There is little to steal: even with the right key the model scores {full:.1f} mIoU, about what a '
        f'constant guess gets ({floor:.1f}), so this audit says nothing about the lock.',
        'holds': f'No attack of this {report["suite"]} suite gets more out of the file than its thief could have '
        f'without it: {versus} (advantage {gain}).',
        'leaks': f'The file gives a thief a head start of {gain} mIoU: {versus}.',
        'falls': f'This protection falls, the file is worth {gain} mIoU to a thief: {versus}.',
    }[level]


def _means(report: Report, level: str) -> list[str]:
    said = [
        'Attack advantage is what the protected file adds for somebody without the key, over what the same photos and '
        'the same computing time give without the file. Zero or below is safe; the gap between the best control and '
        'the right key is all that there is to lose.'
    ]
    name = {'quick': 'a look', 'standard': 'a test', 'full': 'a long test'}.get(report['suite'], 'a test')
    budget = report['budget']
    said.append(
        f'This suite is {name}: each attack had {budget["steps"]} steps and {budget["seconds"]:g} seconds. A patient '
        'attacker has more. What an attack reached is certain; what none reached is only not shown.'
    )
    recovered = [r for r in _own_attacks(report) if (r['recovery'] or 0.0) > 0.1]
    if recovered:
        best = max(recovered, key=lambda r: r['recovery'])
        said.append(f'{capitalise(best["title"])} found {100 * best["recovery"]:.0f} % of the key itself.')
    elif level != 'void':
        said.append('No attack found more of the key than a tenth, which some come to by chance where maps are small.')
    near = [p for p, d in report['close'].items() if d < CLOSE]
    if near:
        names = ', '.join(near[:4]) + (f' and {len(near) - 4} more' if len(near) > 4 else '')
        said.append(
            f'{len(near)} protected layers are close to the public weights ({names}): what a map hides there, whoever '
            'has those weights can line up again.'
        )
    return said


def _more_than_files(beyond: Sequence[Mapping[str, Any]]) -> list[str]:
    """What those get who were granted more than files; empty where nobody was."""
    if not beyond:
        return []
    parts = [f'{b["situation_title"]}: {b["miou"]:.1f} mIoU' for b in beyond]
    return [
        'Granted more than files, attackers get more, and no lock on a file can prevent it: ' + '; '.join(parts) + '. '
        'Keep keys, and the memory of machines that run with them, out of reach.'
    ]


def _elsewhere(transfer: Mapping[str, Any] | None) -> list[str]:
    """What the file is worth on another data set; empty where it is worth nothing there, or nobody tried."""
    return [transfer['says']] if transfer is not None and transfer['level'] == 'helps' else []


def _change(report: Report, headline: Mapping[str, Any], level: str) -> list[str]:
    if level == 'void':
        return ['Report this as a bug of keyseg_mm, with report.json.']
    if level == 'idle':
        return ['Train the model further, and audit again.']
    if level == 'holds':
        longer = {'quick': 'standard', 'standard': 'full'}.get(report['suite'])
        return (
            [f'Nothing for now. Before you rely on it, run the audit with --suite {longer}.']
            if longer
            else ['Nothing for now. Audit again when the model, the points or the public weights change.']
        )
    needs = set(headline['attack']['needs'])
    kind = report.get('kind', MAPS)  # reports of older releases do not say
    advice = _advice(needs, headline['attack']) if kind == MAPS else [_OTHERS[kind]]
    return [*advice, 'Audit again after every change: the figures, not the advice, decide.']


def capitalise(text: str) -> str:
    """A text with a capital first letter and nothing else changed."""
    return text[:1].upper() + text[1:]


def _advice(needs: set[str], attack: Mapping[str, Any]) -> list[str]:
    """What may help against the attack that did best, by what it needed."""
    found = []
    if 'public' in needs:
        found.append(
            'Do not lock weights that are still close to public ones: train with the key from the start, or train the '
            'model longer before it is locked, so that there is nothing to line up with.'
        )
    if 'second' in needs:
        found.append('Give every customer and every release a key and salt of its own, and retire the ones compared.')
    if 'unlabelled' in needs and 'labelled' not in needs:
        found.append(
            'Stored norm statistics tell which channel is which: use points that no batch norm follows, or a rotation, '
            'which mixes channels.'
        )
    if 'labelled' in needs and attack['family'] == 'retrain':
        found.append(
            'Fine-tuning repairs what is left plain: protect more of the model (points=linear covers every layer), and '
            'prefer signs or rotations to plain permutations.'
        )
    if 'labelled' in needs and attack['family'] == 'recover':
        found.append('A key at few or narrow points can be learnt from photos: protect more points, and wider ones.')
    if not needs:
        found.append(
            'The model works too well without its key: choose earlier points, or more of them (points=linear), or a '
            'stronger transform.'
        )
    return found


def _warnings(report: Report) -> list[str]:
    said, results = [], [*report['results'], *(report.get('transfer') or {'results': []})['results']]
    for result in results:
        if result['error']:
            where = f'{capitalise(result["title"])} ({result["situation_title"]})'
            said.append(f'{where} failed and counts for nothing: {result["error"]}')
    cut = [r for r in results if r.get('exhausted')]
    if cut:
        names = ', '.join(sorted({r['title'] for r in cut}))
        said.append(f'The budget ended {len(cut)} of {len(results)} runs before they were done: {names}.')
    if report['held_out'] < 30:
        said.append(f'Scored on {report["held_out"]} photos only: differences of a point or two may be chance.')
    return said
