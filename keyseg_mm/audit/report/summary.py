"""What the figures of any audit come to: the best attack against the best control, a verdict, advice and warnings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from keyseg_mm.audit.engine.results import Failure, Result, S, failed

#: Share of runs that may fail before the others are no audit any more.
FAILED = 0.25
#: Share of the way from the best control to the full mark from which a protection counts as fallen.
FALLEN = 0.5
_W = TypeVar('_W')


@dataclass(frozen=True)
class Summary(Generic[_W]):
    """What an audit comes to.

    Attributes:
        advantages: best attack against best control, by what attackers have.
        headline: the one that counts; None where no run was good for any.
        level: ``void`` (no audit at all), ``idle`` (nothing to steal), ``holds``, ``leaks`` or ``falls``.
        verdict: in a sentence.
        means: what that means, in paragraphs.
        change: what to do.
        warnings: what to bear in mind.
    """

    advantages: tuple[_W, ...]
    headline: _W | None
    level: str
    verdict: str
    means: tuple[str, ...]
    change: tuple[str, ...]
    warnings: tuple[str, ...]


def is_void(checks: Sequence[bool], outcomes: Sequence[Result[S] | Failure]) -> bool:
    """Whether a check of the referee, or too many runs, failed."""
    return not all(checks) or len(failed(outcomes)) > FAILED * len(outcomes)


def run_warnings(outcomes: Sequence[Result[S] | Failure]) -> list[str]:
    """Runs that failed, or were cut short."""
    said = [
        f'{capitalise(one.about.title)} ({one.about.scenario_title}) failed and counts for nothing: {one.error}'
        for one in failed(outcomes)
    ]
    cut = [one.about.title for one in outcomes if isinstance(one, Result) and one.exhausted]
    if cut:
        names = ', '.join(sorted(set(cut)))
        said.append(f'The budget ended {len(cut)} of {len(outcomes)} runs before they were done: {names}.')
    return said


def capitalise(text: str) -> str:
    """A text with a capital first letter and nothing else changed."""
    return text[:1].upper() + text[1:]
