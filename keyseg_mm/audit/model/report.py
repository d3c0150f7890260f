"""What an audit of a model reports: the contents of ``report.json``, and what its figures come to.

The headline is *attack advantage*, best attack mIoU - best control mIoU at the same data. An attack that needs no
photos can be used by whoever has some, so it counts at every share.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from keyseg_mm.audit.engine.attack import Budget
from keyseg_mm.audit.engine.runner import About, Result, Scored, finished
from keyseg_mm.audit.model.attack import Target
from keyseg_mm.audit.model.ciphertext import FileCheck
from keyseg_mm.audit.model.referee import Score
from keyseg_mm.audit.report.page import FALLEN, Report, Summary

#: mIoU points below which an advantage is no more than the noise of small trainings and few photos.
NOISE = 1.0
#: mIoU points between authorised model and best control below which there is little to steal.
LITTLE = 3.0
_RECOVERED = 0.9  # share of the key from which it counts as found
_BY_CHANCE = 0.1  # share of the key that some come to by chance where maps are small


@dataclass(frozen=True)
class Place:
    """Where something is encrypted: a point, or what else there is of places."""

    point: str
    transform: dict[str, Any]
    channels: int | None = None
    values: int | None = None  # where values of weights are encrypted


@dataclass(frozen=True)
class Pictures:
    """Photos that a report shows, label maps of them, all as base64 PNGs, and the colours of the classes."""

    photos: tuple[str, ...]
    truth: tuple[str, ...]
    authorised: tuple[str, ...]  # what the model says with the right key
    no_key: tuple[str, ...]
    palette: tuple[tuple[int, ...], ...]  # RGB


@dataclass(frozen=True, kw_only=True)
class ModelReport(Report):
    """Of a whole audit; ``public`` and ``second`` are names of files, too."""

    FORMAT: ClassVar[str] = 'keyseg_mm audit'
    TEMPLATE: ClassVar[str] = 'model.html.j2'
    WORDS: ClassVar[str] = 'model.words.j2'
    public: str | None
    second: str | None
    key_id: str
    target: Target
    places: tuple[Place, ...]
    budget: Budget  # of each run
    device: str
    held_out: int  # photos that are scored on
    train_photos: int  # from which the attackers' are chosen
    photo_size: tuple[int, ...]  # height and width
    floor: float  # mIoU of the best constant guess
    authorised: Score  # with the right key
    no_key: Score  # the file as it is
    pictures: Pictures
    checks: tuple[FileCheck, ...] = ()  # of a sealed file; empty where the weights are in the open


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


def summarise(report: ModelReport) -> Summary[Advantage]:
    """Headline, verdict and advice from the figures of a report."""
    shares = sorted({one.about.share for one in report.outcomes if one.about.share is not None})
    advantages = tuple(advantage(report, share) for share in (None, *shares))
    headline = max(advantages, key=lambda a: a.advantage)
    # the attack that found most of the key, if that is more than chance
    recovered = [r for r in finished(report.outcomes, 'attack') if (r.score.recovery or 0.0) > _BY_CHANCE]
    found = max(recovered, key=lambda r: r.score.recovery or 0.0, default=None)
    return report.summary(advantages, headline, _level(report, headline, found), recovered=found)


def advantage(report: ModelReport, share: float | None) -> Advantage:
    """Best attack against best control for an attacker with a share of the photos, or with none."""
    usable = [r for r in finished(report.outcomes) if r.about.share in (None, share)]
    # running the file as it is counts as an attack like any other, and the constant guess as a control
    bare = About('attack', 'no-key', 'the file as it is, without a key', family='recover', scenario='file')
    constant = About('control', 'constant', 'one class everywhere', family='retrain', scenario='file')
    attacks, controls = [Scored(bare, report.no_key)], [Scored(constant, Score(report.floor, kappa=0.0))]
    for result in usable:
        side = attacks if result.about.kind == 'attack' else controls
        side.append(Scored(result.about, result.score))
    attack, control = (max(found, key=lambda best: best.score.miou) for found in (attacks, controls))
    photos = max((r.about.photos for r in usable if r.about.share == share), default=0)
    gain, gap = attack.score.miou - control.score.miou, report.authorised.miou - control.score.miou
    return Advantage(share, photos, attack, control, gain, gain / gap if gap > LITTLE else None)


def _level(report: ModelReport, headline: Advantage, found: Result[Score] | None) -> str:
    """``void``, ``idle``, ``holds``, ``leaks`` or ``falls``."""
    if report.is_void:
        return 'void'
    if report.authorised.miou - report.floor < LITTLE:
        return 'idle'
    if headline.advantage <= NOISE:
        return 'holds'
    recovered = found is not None and (found.score.recovery or 0.0) > _RECOVERED
    fallen = headline.of_the_gap is not None and headline.of_the_gap >= FALLEN
    return 'falls' if fallen or recovered else 'leaks'
