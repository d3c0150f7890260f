"""What comes of runs, typed from the attack to the page, and as JSON."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

Kind = Literal['control', 'attack']
S = TypeVar('S')


@dataclass(frozen=True)
class About:
    """Which attack, or control, it was, and what the attacker had; see ``BaseAttack`` and ``Scenario``."""

    kind: Kind
    name: str
    title: str
    needs: tuple[str, ...] = ()
    source: str = ''
    cost: str = ''
    family: str = ''
    scenario: str = ''
    scenario_title: str = ''
    share: float | None = None
    photos: int = 0


@dataclass(frozen=True)
class Failure:
    """A run that came to no score, and a line on what ended it."""

    about: About
    digest: str  # of all that its result would depend on
    seconds: float
    error: str


@dataclass(frozen=True)
class Scored(Generic[S]):
    """A run, and the referee's score of it."""

    about: About
    score: S

    def bare(self) -> Scored[S]:
        """The same without anything else that is known of the run, for summaries."""
        return Scored(self.about, self.score)


@dataclass(frozen=True)
class Result(Scored[S]):
    """A finished run."""

    digest: str  # of all that it depends on
    seconds: float  # that the attack took
    exhausted: bool  # the budget ended it before it was done
    notes: str
    pictures: tuple[str, ...]  # what came of the photos that a report shows, as base64 PNGs


@dataclass(frozen=True)
class Check(Generic[S]):
    """A check that a referee made of itself: what it scored, and whether that is as it must be."""

    score: S
    passed: bool


def finished(outcomes: Iterable[Result[S] | Failure], kind: Kind | None = None) -> list[Result[S]]:
    """Those that came to a score, of one kind or of all."""
    done = [outcome for outcome in outcomes if isinstance(outcome, Result)]
    return [result for result in done if kind in (None, result.about.kind)]


def failed(outcomes: Iterable[Result[S] | Failure]) -> list[Failure]:
    """Those that did not."""
    return [outcome for outcome in outcomes if isinstance(outcome, Failure)]


def to_json(value: Any) -> Any:
    """A dataclass, with all that it holds, as JSON takes it; infinity, which JSON lacks, becomes null."""
    if dataclasses.is_dataclass(value):
        return {item.name: to_json(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {name: to_json(item) for name, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [to_json(item) for item in value]
    return None if value == math.inf else value


def read_result(row: Mapping[str, Any], score: Callable[..., S]) -> Result[S]:
    """A result from the JSON of its fields.

    Args:
        row: what was read.
        score: the class of its score.

    Raises:
        KeyError, TypeError: it is none.
    """
    about = About(**{**row['about'], 'needs': tuple(row['about']['needs'])})
    parts = {'about': about, 'score': score(**row['score']), 'pictures': tuple(row['pictures'])}
    return Result(**{**row, **parts})
