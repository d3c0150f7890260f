"""Attack advantage: best attack mIoU - best control mIoU at the same data."""

from __future__ import annotations

from dataclasses import dataclass

from keyseg_mm.audit.engine.results import About, Result, Scored, finished
from keyseg_mm.audit.model.report import ModelReport, Task
from keyseg_mm.audit.model.scoring import Score

#: mIoU points below which an advantage is no more than the noise of small trainings and few photos.
NOISE = 1.0
#: mIoU points between authorised model and best control below which there is little to steal.
LITTLE = 3.0


@dataclass(frozen=True)
class Advantage:
    """Best attack against best control for an attacker with a share of the photos, or with none."""

    share: float | None
    photos: int
    attack: Scored[Score]
    control: Scored[Score]
    advantage: float  # mIoU points
    of_the_gap: float | None  # between the control and the right key; None where that is little


def advantage(report: ModelReport, share: float | None) -> Advantage:
    """Best attack against best control for an attacker with a share of the photos, or with none."""
    usable = [r for r in counted(report) if r.about.share in (None, share)]
    # running the file as it is counts as an attack like any other
    bare = About('attack', 'no-key', 'the file as it is, without a key', family='recover', scenario='file')
    attacks, controls = [Scored(bare, report.no_key)], [floor_of(report)]
    for result in usable:
        (attacks if result.about.kind == 'attack' else controls).append(result.bare())
    attack, control = (max(found, key=lambda best: best.score.miou) for found in (attacks, controls))
    photos = max((r.about.photos for r in usable if r.about.share == share), default=0)
    gain, gap = attack.score.miou - control.score.miou, report.authorised.miou - control.score.miou
    return Advantage(share, photos, attack, control, gain, gain / gap if gap > LITTLE else None)


def counted(report: ModelReport) -> list[Result[Score]]:
    """The runs that count: those of attackers who were granted nothing beyond files."""
    return [result for result in finished(report.outcomes) if not result.about.beyond_files]


def floor_of(task: Task) -> Scored[Score]:
    """The constant guess as a control like any other."""
    about = About('control', 'constant', 'one class everywhere', family='retrain', scenario='file')
    return Scored(about, Score(task.floor, None, 0.0))
