"""What the figures of an audit of a model come to: the headline, the verdict, what it means and what to change.

The headline is *attack advantage*, best attack mIoU - best control mIoU at the same data. An attack that needs no
photos can be used by whoever has some, so it counts at every share. Attacks that were granted part of the key or an
authorised run are told of, and do not count: against those a lock on a file promises nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from keyseg_mm.audit.engine.results import About, Kind, Result, Scored, finished
from keyseg_mm.audit.model.report import ModelReport, Task, TransferReport
from keyseg_mm.audit.model.scoring import Score
from keyseg_mm.audit.model.spectra import CLOSE
from keyseg_mm.audit.report.page import words
from keyseg_mm.audit.report.summary import FALLEN, Summary, is_void, run_warnings

#: mIoU points below which an advantage is no more than the noise of small trainings and few photos.
NOISE = 1.0
#: mIoU points between authorised model and best control below which there is little to steal.
LITTLE = 3.0
_RECOVERED = 0.9  # share of the key from which it counts as found
_GIVEN_AWAY = 0.5  # share of the key from which a transfer is said to have given some of it away
_BY_CHANCE = 0.1  # share of the key that some come to by chance where maps are small
_FEW = 30  # photos below which differences of a point or two may be chance
_WORDS = 'model.words.j2'


@dataclass(frozen=True)
class Advantage:
    """Best attack against best control for an attacker with a share of the photos, or with none."""

    share: float | None
    photos: int
    attack: Scored[Score]
    control: Scored[Score]
    advantage: float  # mIoU points
    of_the_gap: float | None  # between the control and the right key; None where that is little

    @property
    def title(self) -> str:
        """What the attacker has, in words."""
        return f'{self.photos or "no"} photos'


@dataclass(frozen=True)
class TransferRow:
    """The best runs on another data set that came to an end with a share of its photos."""

    share: float
    photos: int
    attack: Scored[Score]
    control: Scored[Score]
    key_holder: Scored[Score] | None
    advantage: float  # mIoU points of the attack above the control
    noise: float  # what of it may be luck
    to_gain: float | None  # what the key holder has above the control

    @property
    def title(self) -> str:
        """What the attacker has, in words."""
        return f'{self.photos} photos'


@dataclass(frozen=True)
class TransferSummary:
    """How much better a start the protected file is for another data set than none."""

    rows: tuple[TransferRow, ...]
    headline: TransferRow | None  # of the largest advantage above noise; None where no attack came to an end
    level: str  # helps, no-help, idle (the key would not help either) or void
    says: str  # a sentence or two


@dataclass(frozen=True)
class ModelSummary(Summary[Advantage]):
    """What an audit of a model comes to."""

    headline: Advantage  # the largest one
    beyond: tuple[Scored[Score], ...]  # the best attack of each scenario that grants more than files
    transfer: TransferSummary | None  # None where nobody tried


def summarise(report: ModelReport) -> ModelSummary:
    """Headline, verdict and advice from the figures of a report."""
    shares = sorted({one.about.share for one in report.outcomes if one.about.share is not None})
    advantages = tuple(advantage(report, share) for share in (None, *shares))
    headline = max(advantages, key=lambda a: a.advantage)
    level, beyond, transfer = _level(report, headline), _beyond(report), transferred(report.transfer)
    close = [place.point for place in report.places if place.distance is not None and place.distance < CLOSE]
    found = _most_recovered(_counted(report), _BY_CHANCE)
    warnings = run_warnings([*report.outcomes, *(report.transfer.outcomes if report.transfer else ())])
    if report.held_out < _FEW:
        warnings.append(f'Scored on {report.held_out} photos only: differences of a point or two may be chance.')
    told = {'recovered': found, 'close': close, 'beyond': beyond, 'transfer': transfer}
    return ModelSummary(
        advantages=advantages,
        headline=headline,
        level=level,
        verdict=' '.join(words(_WORDS, 'verdict', report=report, best=headline, level=level)),
        means=words(_WORDS, 'means', report=report, level=level, **told),
        change=words(_WORDS, 'change', report=report, attack=headline.attack, level=level),
        warnings=tuple(warnings),
        beyond=beyond,
        transfer=transfer,
    )


def advantage(report: ModelReport, share: float | None) -> Advantage:
    """Best attack against best control for an attacker with a share of the photos, or with none."""
    usable = [r for r in _counted(report) if r.about.share in (None, share)]
    # running the file as it is counts as an attack like any other
    bare = About('attack', 'no-key', 'the file as it is, without a key', family='recover', scenario='file')
    attacks, controls = [Scored(bare, report.no_key)], [_floor_of(report)]
    for result in usable:
        (attacks if result.about.kind == 'attack' else controls).append(result.bare())
    attack, control = (max(found, key=lambda best: best.score.miou) for found in (attacks, controls))
    photos = max((r.about.photos for r in usable if r.about.share == share), default=0)
    gain, gap = attack.score.miou - control.score.miou, report.authorised.miou - control.score.miou
    return Advantage(share, photos, attack, control, gain, gain / gap if gap > LITTLE else None)


def _counted(report: ModelReport) -> list[Result[Score]]:
    """The runs that count: those of attackers who were granted nothing beyond files."""
    return [result for result in finished(report.outcomes) if not result.about.beyond_files]


def _floor_of(task: Task) -> Scored[Score]:
    """The constant guess as a control like any other."""
    about = About('control', 'constant', 'one class everywhere', family='retrain', scenario='file')
    return Scored(about, Score(task.floor, None, 0.0))


def _most_recovered(results: Sequence[Result[Score]], least: float) -> Result[Score] | None:
    """The attack that found most of the key, if that is more than a share."""
    found = [r for r in finished(results, 'attack') if (r.score.recovery or 0.0) > least]
    return max(found, key=lambda r: r.score.recovery or 0.0, default=None)


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
    fallen = headline.of_the_gap is not None and headline.of_the_gap >= FALLEN
    return 'falls' if fallen or _most_recovered(_counted(report), _RECOVERED) else 'leaks'


def transferred(part: TransferReport | None) -> TransferSummary | None:
    """Figures and words on a transfer; None where none was tried."""
    if part is None:
        return None
    shares = sorted({one.about.share for one in part.outcomes if one.about.share is not None})
    rows = tuple(row for share in shares if (row := _row(part, share)))
    best = max(rows, key=lambda row: row.advantage - row.noise, default=None)
    level = _transfer_level(part, rows, best)
    given = _most_recovered(finished(part.outcomes), _GIVEN_AWAY)
    found = given.score.recovery if given else None
    return TransferSummary(
        rows, best, level, ' '.join(words(_WORDS, 'transfer', part=part, best=best, level=level, found=found))
    )


def _row(part: TransferReport, share: float) -> TransferRow | None:
    done = [r for r in finished(part.outcomes) if r.about.share == share]
    attack, control, holder = _best(done, 'attack'), _best(done, 'control'), _best(done, 'key-holder')
    if attack is None:
        return None
    versus = control if control and control.score.miou >= part.floor else _floor_of(part)
    return TransferRow(
        share=share,
        photos=attack.about.photos,
        attack=attack,
        control=versus,
        key_holder=holder,
        advantage=attack.score.miou - versus.score.miou,
        noise=max(NOISE, _spread(done)),
        to_gain=holder.score.miou - versus.score.miou if holder else None,
    )


def _best(results: Sequence[Result[Score]], kind: Kind) -> Scored[Score] | None:
    best = max((r for r in results if r.about.kind == kind), key=lambda r: r.score.miou, default=None)
    return best.bare() if best else None


def _spread(results: Sequence[Result[Score]]) -> float:
    """What two draws of the better control from scratch differ by: luck, then."""
    by_name: dict[str, list[float]] = {}
    for result in finished(results, 'control'):
        by_name.setdefault(result.about.name, []).append(result.score.miou)
    twice = [values for values in by_name.values() if len(values) > 1]
    best = max(twice, key=max, default=[0.0])
    return max(best) - min(best)


def _transfer_level(part: TransferReport, rows: Sequence[TransferRow], best: TransferRow | None) -> str:
    if best is None or is_void([part.check.passed], part.outcomes):
        return 'void'
    if best.advantage > best.noise:
        return 'helps'
    gains = [row.to_gain - row.noise for row in rows if row.to_gain is not None]
    return 'idle' if gains and max(gains) <= 0.0 else 'no-help'
