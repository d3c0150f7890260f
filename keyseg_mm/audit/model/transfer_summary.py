"""What the runs on another data set come to: how much better a start the protected file is for it than none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from keyseg_mm.audit.engine.results import Kind, Result, Scored, finished
from keyseg_mm.audit.model.advantage import NOISE, floor_of
from keyseg_mm.audit.model.report import TransferReport
from keyseg_mm.audit.model.scoring import Score
from keyseg_mm.audit.report.summary import is_void

#: Share of the key from which a transfer attack is said to have found some of it.
_FOUND = 0.5


@dataclass(frozen=True)
class TransferRow:
    """The best runs that came to an end with a share of the photos."""

    share: float
    photos: int
    attack: Scored[Score]
    control: Scored[Score]
    key_holder: Scored[Score] | None
    advantage: float  # mIoU points of the attack above the control
    noise: float  # what of it may be luck
    to_gain: float | None  # what the key holder has above the control


@dataclass(frozen=True)
class TransferSummary:
    """What a transfer comes to."""

    rows: tuple[TransferRow, ...]
    headline: TransferRow | None  # of the largest advantage above noise; None where no attack came to an end
    level: str  # helps, no-help, idle (the key would not help either) or void
    says: str  # a sentence or two


def transferred(part: TransferReport | None) -> TransferSummary | None:
    """Figures and words on the transfer; None where none was tried."""
    if part is None:
        return None
    shares = sorted({one.about.share for one in part.outcomes if one.about.share is not None})
    rows = tuple(row for share in shares if (row := _row(part, share)))
    headline = max(rows, key=lambda row: row.advantage - row.noise, default=None)
    level = _level(part, rows, headline)
    return TransferSummary(rows, headline, level, _says(part, headline, level))


def _row(part: TransferReport, share: float) -> TransferRow | None:
    done = [r for r in finished(part.outcomes) if r.about.share == share]
    attack, control, holder = _best(done, 'attack'), _best(done, 'control'), _best(done, 'key-holder')
    if attack is None:
        return None
    versus = control.bare() if control and control.score.miou >= part.floor else floor_of(part)
    return TransferRow(
        share=share,
        photos=attack.about.photos,
        attack=attack.bare(),
        control=versus,
        key_holder=holder.bare() if holder else None,
        advantage=attack.score.miou - versus.score.miou,
        noise=max(NOISE, _spread(done)),
        to_gain=holder.score.miou - versus.score.miou if holder else None,
    )


def _best(results: Sequence[Result[Score]], kind: Kind) -> Result[Score] | None:
    return max((r for r in results if r.about.kind == kind), key=lambda r: r.score.miou, default=None)


def _spread(results: Sequence[Result[Score]]) -> float:
    """What two draws of the better control from scratch differ by: luck, then."""
    by_name: dict[str, list[float]] = {}
    for result in finished(results, 'control'):
        by_name.setdefault(result.about.name, []).append(result.score.miou)
    twice = [values for values in by_name.values() if len(values) > 1]
    best = max(twice, key=max, default=[0.0])
    return max(best) - min(best)


def _level(part: TransferReport, rows: Sequence[TransferRow], headline: TransferRow | None) -> str:
    if headline is None or is_void([part.check.passed], part.outcomes):
        return 'void'
    if headline.advantage > headline.noise:
        return 'helps'
    gains = [row.to_gain - row.noise for row in rows if row.to_gain is not None]
    return 'idle' if gains and max(gains) <= 0.0 else 'no-help'


def _says(part: TransferReport, headline: TransferRow | None, level: str) -> str:
    if headline is None or level == 'void':
        return f'The transfer to {part.config} is void: its runs failed, or the referee failed its own check there.'
    attack, control, holder = headline.attack, headline.control, headline.key_holder
    with_key = f'; with the key it would be {holder.score.miou:.1f}' if holder else ''
    versus = (
        f'with {headline.photos} photos of it, {attack.about.title} reaches {attack.score.miou:.1f} mIoU; without the '
        f'file, {control.about.title} gives {control.score.miou:.1f}{with_key} (advantage {headline.advantage:+.1f}, '
        f'of which {headline.noise:.1f} may be luck)'
    )
    first = {
        'helps': f'As a start for another data set ({part.config}) the file is worth something to a thief',
        'no-help': f'As a start for another data set ({part.config}) the file is worth no more to a thief than none',
        'idle': f'For another data set ({part.config}) the file is no better a start than none, but with the key it '
        'is not either, so this says nothing about the lock',
    }[level]
    found = max((r.score.recovery or 0.0 for r in finished(part.outcomes, 'attack')), default=0.0)
    more = f' These photos also gave away {100 * found:.0f} % of the key itself.' if found > _FOUND else ''
    if level == 'helps':
        more += ' What is left plain carries features over: protect earlier points, or all layers (points=linear).'
    return f'{first}: {versus}.{more}'
