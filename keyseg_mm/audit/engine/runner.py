"""Runs of attacks and controls: what they are, what comes of them, and running them one by one.

They are budgeted, seeded and resumable, and none of them can end the suite. Each finished run is a JSON file of its
own. A later audit takes it over as it is if nothing that it depends on has changed: the case, what it is scored on, and
the code.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, TypeVar

from tqdm import tqdm

from keyseg_mm.atomic import make_folder, write_json
from keyseg_mm.audit.engine.attack import A, BaseAttack, C, Grant, Progress, seed_everything
from keyseg_mm.audit.engine.contents import digest_of
from keyseg_mm.audit.engine.executor import reason

Kind = Literal['control', 'attack']
S = TypeVar('S')
_BAR = '  {desc:<44.44} {percentage:3.0f}% |{bar:20}| {postfix}'
#: A run may exceed its seconds by this much, for what cannot be cut short, before it is flagged.
_GRACE = 1.25
_PACKAGE = Path(__file__).parents[1]


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


Outcome = Result[Any] | Failure


def finished(outcomes: Iterable[Result[S] | Failure], kind: Kind | None = None) -> list[Result[S]]:
    """Those that came to a score, of one kind or of all."""
    done = [outcome for outcome in outcomes if isinstance(outcome, Result)]
    return [result for result in done if kind in (None, result.about.kind)]


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
    """A result from the JSON of its fields, its score of a class; KeyError or TypeError where it is none."""
    about = About(**{**row['about'], 'needs': tuple(row['about']['needs'])})
    parts = {'about': about, 'score': score(**row['score']), 'pictures': tuple(row['pictures'])}
    return Result(**{**row, **parts})


@dataclass(frozen=True)
class Scenario(Generic[C]):
    """What an attacker may be granted besides what is public, and the case that comes of it."""

    name: str  # for files, as photos-0.1
    title: str
    case: C
    new: frozenset[type[Grant]] = frozenset()  # kinds of grants; an attack that uses none of them was run before
    share: float | None = None  # of the training photos
    photos: int = 0  # number of the attacker's

    def wants(self, attack: type[BaseAttack[C, Any]]) -> bool:
        """Whether the attack is to be run here: it makes sense, all that it needs is there, and some of it is new."""
        used = tuple(attack.needs | attack.helped_by)
        fresh = not self.new or any(issubclass(kind, used) for kind in self.new)
        return fresh and attack.possible(self.case)


@dataclass(frozen=True)
class Run(Generic[C, A]):
    """One attack, or control, in one scenario."""

    attack: type[BaseAttack[C, A]]
    scenario: Scenario[C]
    kind: Kind = 'attack'

    @property
    def name(self) -> str:
        """For files."""
        return f'{self.kind}-{self.attack.name}-{self.scenario.name}'

    @property
    def title(self) -> str:
        """For people."""
        return f'{self.attack.title}, {self.scenario.title}'

    def about(self) -> About:
        """What a report says of it."""
        attack, where = self.attack, self.scenario
        needs = tuple(sorted(kind.name for kind in attack.needs))
        had = where.name, where.title, where.share, where.photos
        return About(self.kind, attack.name, attack.title, needs, attack.source, attack.cost, attack.kind, *had)


def runs_of(
    scenarios: Iterable[Scenario[C]], attacks: Mapping[str, type[BaseAttack[C, A]]], kind: Kind = 'attack'
) -> list[Run[C, A]]:
    """The attacks, or controls, that are to be run in scenarios."""
    return [Run(attack, where, kind) for where in scenarios for attack in attacks.values() if where.wants(attack)]


class Judge(Protocol):
    """What a runner asks of a referee."""

    scores: Any  # their class
    held_out: Any  # what scores depend on besides the case

    def positive_control(self) -> Check[Any]:
        """How the true key scores, and whether that is full marks."""

    def negative_control(self, seed: int) -> Check[Any]:
        """How random keys score, and whether that is nothing."""

    def pictured(self, attempt: Any, shown: Sequence[int]) -> tuple[Any, tuple[str, ...]]:
        """Score what an attack came up with, and picture some of it, by numbers of photos, for a report."""


class Runner:
    """Runs attacks against one referee.

    Args:
        judge: the referee.
        folder: for the results; made if it is missing.
        shown: numbers of the photos of which pictures are kept with each result.
        bars: show a progress bar for each run.
    """

    def __init__(self, judge: Judge, folder: Path, shown: Sequence[int], bars: bool = True) -> None:
        self.folder, self.bars, self.judge, self._shown = folder, bars, judge, tuple(shown)
        self._digest_of = functools.cache(digest_of)  # cases are told apart as objects, not by what they hold

    def run(self, run: Run[Any, Any]) -> Outcome:
        """Run one attack or control, or take over its finished result."""
        return self.kept(run) or self.keep(run, self.attempt(run))

    def kept(self, run: Run[Any, Any]) -> Result[Any] | None:
        """The result of an earlier run of the same inputs; damaged files and failures are run again."""
        try:
            read = json.loads(self._path(run).read_text(encoding='utf-8'))
            result: Result[Any] = read_result(read, self.judge.scores)
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return result if result.digest == self.digest(run) else None

    def keep(self, run: Run[Any, Any], outcome: Outcome) -> Outcome:
        """Store what came of a run; returns it."""
        make_folder(self.folder)
        write_json(self._path(run), dataclasses.asdict(outcome))
        return outcome

    def digest(self, run: Run[Any, Any]) -> str:
        """SHA-256 of all that a result depends on."""
        case, scored_on = run.scenario.case, (self.judge.held_out, *self._shown)
        parts = (run.name, _code(), self._digest_of(case), self._digest_of(scored_on))
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def attempt(self, run: Run[Any, Any]) -> Outcome:
        """Run and score; whatever an attack raises becomes a failure, as the others are still worth running."""
        case, start = run.scenario.case, time.monotonic()
        about, digest = run.about(), self.digest(run)
        seed_everything(case.seed)
        with tqdm(desc=run.title, total=1.0, miniters=0, disable=not self.bars, leave=False, bar_format=_BAR) as bar:
            try:
                found = run.attack().run(case, _progress_on(bar))
                seconds = round(time.monotonic() - start, 2)
                score, pictures = self.judge.pictured(found, self._shown)
            except Exception as error:
                return Failure(about, digest, round(time.monotonic() - start, 2), reason(error))
        exhausted = bool(found.exhausted or seconds > _GRACE * case.budget.seconds)
        return Result(about, score, digest, seconds, exhausted, found.notes, pictures)

    def _path(self, run: Run[Any, Any]) -> Path:
        return self.folder / f'{run.name}.json'


def _progress_on(bar: Any) -> Progress:
    """What an attack calls, shown on a tqdm bar of a total of 1, not too often."""

    def show(share: float, words: str) -> None:
        bar.set_postfix_str(words, refresh=False)
        bar.update(min(1.0, max(0.0, float(share))) - bar.n)

    return show


@functools.cache
def _code() -> str:
    """Digest of the audit's own source."""
    files = sorted(_PACKAGE.rglob('*.py'))
    return hashlib.sha256(b''.join(path.read_bytes() for path in files)).hexdigest()
