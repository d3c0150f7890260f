"""What the figures of an audit of a model come to: the headline, the verdict, what it means and what to change.

An attack that needs no photos can be used by whoever has some, so it counts at every share. Attacks that were granted
part of the key or an authorised run are told of, and do not count: against those a lock on a file promises nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from keyseg_mm.audit.engine.results import Scored, finished
from keyseg_mm.audit.model.advantage import LITTLE, NOISE, Advantage, advantage, counted
from keyseg_mm.audit.model.attack import Target
from keyseg_mm.audit.model.report import ModelReport
from keyseg_mm.audit.model.scoring import Score
from keyseg_mm.audit.model.spectra import CLOSE
from keyseg_mm.audit.model.transfer_summary import TransferSummary, transferred
from keyseg_mm.audit.report.summary import FALLEN, Summary, capitalise, is_void, run_warnings

_RECOVERED = 0.9  # share of the key from which it counts as found
_BY_CHANCE = 0.1  # share of the key that some come to by chance where maps are small
_FEW = 30  # photos below which differences of a point or two may be chance

#: What may help, by what the attack that did best needed, and whether it trained a model.
_PUBLIC = (
    'Do not lock weights that are still close to public ones: train with the key from the start, or train the model '
    'longer before it is locked, so that there is nothing to line up with.'
)
_SECOND = 'Give every customer and every release a key and salt of its own, and retire the ones compared.'
_UNLABELLED = (
    'Stored norm statistics tell which channel is which: use points that no batch norm follows, or a rotation, which '
    'mixes channels.'
)
_RETRAINED = (
    'Fine-tuning repairs what is left plain: protect more of the model (points=linear covers every layer), and prefer '
    'signs or rotations to plain permutations.'
)
_LEARNT = 'A key at few or narrow points can be learnt from photos: protect more points, and wider ones.'
_WEAK = (
    'The model works too well without its key: choose earlier points, or more of them (points=linear), or a stronger '
    'transform.'
)
#: What may help where something else than channel maps at points is encrypted.
_OTHERS = {
    Target.BLOCKS: 'A few maps behind which all weights are plain are learnt from photos, or trained away: encrypt '
    'more of the model, by a lock at points=linear with signs, or by --scheme tensors.',
    Target.WEIGHTS: 'Encrypt more of the weights (a larger --share of --scheme selective, or all by --scheme tensors), '
    'and not those of a model that is close to public weights: ranks put them in order again.',
    Target.IMAGES: 'The weights are plain, and plain images may be near enough to encrypted ones to go on from there. '
    'Encrypt feature maps or weights where the model itself is to be protected; larger blocks leave more to learn.',
}


@dataclass(frozen=True)
class ModelSummary(Summary[Advantage]):
    """What an audit of a model comes to.

    Attributes:
        headline: the largest advantage.
        beyond: the best attack of each scenario that grants more than files.
        transfer: what the file is worth on another data set; None where nobody tried.
    """

    headline: Advantage
    beyond: tuple[Scored[Score], ...]
    transfer: TransferSummary | None


def summarise(report: ModelReport) -> ModelSummary:
    """Headline, verdict and advice from the figures of a report."""
    shares = sorted({one.about.share for one in report.outcomes if one.about.share is not None})
    advantages = tuple(advantage(report, share) for share in (None, *shares))
    headline = max(advantages, key=lambda a: a.advantage)
    level, beyond, transfer = _level(report, headline), _beyond(report), transferred(report.transfer)
    helps = [transfer.says] if transfer is not None and transfer.level == 'helps' else []
    return ModelSummary(
        advantages=advantages,
        headline=headline,
        level=level,
        verdict=_verdict(report, headline, level),
        means=(*_means(report, level), *_more_than_files(beyond), *helps),
        change=_change(report, headline, level),
        warnings=_warnings(report),
        beyond=beyond,
        transfer=transfer,
    )


def _beyond(report: ModelReport) -> tuple[Scored[Score], ...]:
    best: dict[str, Scored[Score]] = {}
    for result in finished(report.outcomes, 'attack'):
        name = result.about.scenario
        if result.about.beyond_files and (name not in best or result.score.miou > best[name].score.miou):
            best[name] = result.bare()
    return tuple(best.values())


def _level(report: ModelReport, headline: Advantage) -> str:
    """``void``, ``idle``, ``holds``, ``leaks`` or ``falls``."""
    own = [one for one in report.outcomes if not one.about.beyond_files]
    if is_void([report.positive.passed, report.negative.passed], own):
        return 'void'
    if report.authorised.miou - report.floor < LITTLE:
        return 'idle'
    if headline.advantage <= NOISE:
        return 'holds'
    share = headline.of_the_gap
    recovered = max((r.score.recovery or 0.0 for r in finished(counted(report), 'attack')), default=0.0)
    return 'falls' if recovered > _RECOVERED or (share is not None and share >= FALLEN) else 'leaks'


def _verdict(report: ModelReport, headline: Advantage, level: str) -> str:
    full, attack, control = report.authorised.miou, headline.attack, headline.control
    gain = f'{headline.advantage:+.1f}'
    photos = f'{headline.photos} photos' if headline.photos else 'no photos'
    versus = (
        f'with {photos} and no key, {attack.about.title} reaches {attack.score.miou:.1f} mIoU; without the file, '
        f'{control.about.title} gives {control.score.miou:.1f}; the right key gives {full:.1f}'
    )
    trusted = report.positive.passed and report.negative.passed
    return {
        'void': 'This audit is void, and says neither that the lock holds nor that it falls: '
        + ('too many of its runs failed.' if trusted else 'the referee failed its own checks.'),
        'idle': f'There is little to steal: even with the right key the model scores {full:.1f} mIoU, about what a '
        f'constant guess gets ({report.floor:.1f}), so this audit says nothing about the lock.',
        'holds': f'No attack of this {report.suite} suite gets more out of the file than its thief could have '
        f'without it: {versus} (advantage {gain}).',
        'leaks': f'The file gives a thief a head start of {gain} mIoU: {versus}.',
        'falls': f'This protection falls, the file is worth {gain} mIoU to a thief: {versus}.',
    }[level]


def _means(report: ModelReport, level: str) -> list[str]:
    name = {'quick': 'a look', 'standard': 'a test', 'full': 'a long test'}.get(report.suite, 'a test')
    said = [
        'Attack advantage is what the protected file adds for somebody without the key, over what the same photos and '
        'the same computing time give without the file. Zero or below is safe; the gap between the best control and '
        'the right key is all that there is to lose.',
        f'This suite is {name}: each attack had {report.budget.steps} steps and {report.budget.seconds:g} seconds. A '
        'patient attacker has more. What an attack reached is certain; what none reached is only not shown.',
    ]
    best = max(finished(counted(report), 'attack'), key=lambda r: r.score.recovery or 0.0, default=None)
    recovered = best.score.recovery or 0.0 if best else 0.0
    if best and recovered > _BY_CHANCE:
        said.append(f'{capitalise(best.about.title)} found {100 * recovered:.0f} % of the key itself.')
    elif level != 'void':
        said.append('No attack found more of the key than a tenth, which some come to by chance where maps are small.')
    near = [place.point for place in report.places if place.distance is not None and place.distance < CLOSE]
    if near:
        names = ', '.join(near[:4]) + (f' and {len(near) - 4} more' if len(near) > 4 else '')
        said.append(
            f'{len(near)} protected layers are close to the public weights ({names}): what a map hides there, whoever '
            'has those weights can line up again.'
        )
    return said


def _more_than_files(beyond: Sequence[Scored[Score]]) -> list[str]:
    """What those get who were granted more than files; empty where nobody was."""
    parts = [f'{best.about.scenario_title}: {best.score.miou:.1f} mIoU' for best in beyond]
    said = (
        f'Granted more than files, attackers get more, and no lock on a file can prevent it: {"; ".join(parts)}. '
        'Keep keys, and the memory of machines that run with them, out of reach.'
    )
    return [said] if parts else []


def _change(report: ModelReport, headline: Advantage, level: str) -> tuple[str, ...]:
    if level == 'void':
        return ('Report this as a bug of keyseg_mm, with report.json.',)
    if level == 'idle':
        return ('Train the model further, and audit again.',)
    if level == 'holds':
        longer = {'quick': 'standard', 'standard': 'full'}.get(report.suite)
        if longer:
            return (f'Nothing for now. Before you rely on it, run the audit with --suite {longer}.',)
        return ('Nothing for now. Audit again when the model, the points or the public weights change.',)
    advice = [_OTHERS[report.target]] if report.target in _OTHERS else _advice(headline.attack)
    return (*advice, 'Audit again after every change: the figures, not the advice, decide.')


def _advice(attack: Scored[Score]) -> list[str]:
    """What may help against the attack that did best, by what it needed."""
    needs, family = set(attack.about.needs), attack.about.family
    labelled = 'labelled' in needs
    rules = (
        ('public' in needs, _PUBLIC),
        ('second' in needs, _SECOND),
        ('unlabelled' in needs and not labelled, _UNLABELLED),
        (labelled and family == 'retrain', _RETRAINED),
        (labelled and family == 'recover', _LEARNT),
        (not needs, _WEAK),
    )
    return [words for applies, words in rules if applies]


def _warnings(report: ModelReport) -> tuple[str, ...]:
    said = run_warnings([*report.outcomes, *(report.transfer.outcomes if report.transfer else ())])
    if report.held_out < _FEW:
        said.append(f'Scored on {report.held_out} photos only: differences of a point or two may be chance.')
    return tuple(said)
