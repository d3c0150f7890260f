"""The runs of an audit of a model: in which scenarios, and against which referee."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from keyseg_mm.audit.engine.attack import Grant, Run, Scenario
from keyseg_mm.audit.engine.budget import Budget, Progress
from keyseg_mm.audit.engine.runner import Runner
from keyseg_mm.audit.engine.suites import ModelSuite
from keyseg_mm.audit.model.attack import (
    CONTROLS,
    Attack,
    Attempt,
    Case,
    LabelledPhotos,
    PublicWeights,
    SecondFile,
    Tuning,
)
from keyseg_mm.audit.model.referee import Judge, Referee
from keyseg_mm.audit.model.referees import MapReferee
from keyseg_mm.audit.model.scoring import Score
from keyseg_mm.audit.report.pictures import png

_LEAST_SECONDS = 3.0  # of a run: below that nothing is tried in earnest


class ModelRunner(Runner[Case, Attempt, Score]):
    """Runs attacks on a model.

    Args:
        judge: holds the key and scores.
        folder: for the results.
        shown: numbers of held-out photos whose label maps are kept with each result.
        bars: show a progress bar for each run.
    """

    score: ClassVar[type[Score]] = Score

    def __init__(self, judge: Judge, folder: Path, shown: Sequence[int], bars: bool = True) -> None:
        super().__init__(folder, (judge.held_out, *shown), bars)
        self._judge, self._shown = judge, shown

    def attack(self, run: Run[Case, Attempt], progress: Progress) -> Attempt:
        if run.kind == 'key-holder' and issubclass(run.attack, Tuning):
            return self._judge.with_key(run.attack, run.scenario.case, progress)
        return super().attack(run, progress)

    def judge(self, attempt: Attempt, run: Run[Case, Attempt]) -> tuple[Score, tuple[str, ...]]:
        verdict = self._judge.judge(attempt, run.scenario.case)
        return verdict.score, tuple(png(verdict.labels[i]) for i in self._shown)


def scenarios(
    referee: Referee, shares: Mapping[float, LabelledPhotos], second: SecondFile | None, suite: ModelSuite
) -> list[Scenario[Case]]:
    """All scenarios, the poorest first.

    Args:
        referee: of the file; it hands out what is granted beyond files.
        shares: photos by the attacker's share of the training set.
        second: another protected file, if there is one.
        suite: how much of the key leaks.
    """
    file = referee.case
    public = ' and public weights' if PublicWeights in file else ''
    found = [Scenario('file', f'the file alone{public}', file)]
    for share, photos in shares.items():
        title = f'{len(photos)} photos ({100 * share:g} %){public}'
        new = frozenset({LabelledPhotos})
        found.append(Scenario(f'photos-{share:g}', title, file.granting(photos), new, share=share, photos=len(photos)))
    best = found[-1]
    if second is not None:
        found.append(_more(best, 'second', 'a second checkpoint', second))
    if isinstance(referee, MapReferee) and referee.counts_rows:  # tables of other kinds no attack completes
        for part in suite.key_shares:
            leaked = _more(best, f'leak-{part:g}', f'{100 * part:g} % of the key leaked', referee.leak(part, file.seed))
            found.append(dataclasses.replace(leaked, key_share=part))
        recording = referee.record(best.case[LabelledPhotos].images[:2])
        found.append(_more(best, 'recorded', 'one recorded authorised run', recording))
    return [*found, _more(best, 'oracle', 'an authorised oracle', referee.oracle())]


def _more(base: Scenario[Case], name: str, title: str, grant: Grant) -> Scenario[Case]:
    """A scenario with one more grant, and nothing else new."""
    new = frozenset({type(grant)})
    return dataclasses.replace(base, name=name, title=title, case=base.case.granting(grant), new=new)


def runs(found: Sequence[Scenario[Case]], attacks: Mapping[str, type[Attack]]) -> list[Run[Case, Attempt]]:
    """All runs, controls first: an interrupted audit then has something to compare with."""
    bare = [where for where in found if not where.beyond_files and SecondFile not in where.new]
    controls = [Run(cls, where, 'control') for where in bare for cls in CONTROLS.values() if where.wants(cls)]
    return [*controls, *(Run(cls, where) for where in found for cls in attacks.values() if where.wants(cls))]


def budgeted(found: Sequence[Scenario[Case]], suite: ModelSuite, number: int) -> list[Scenario[Case]]:
    """The same scenarios with what each of a number of runs may spend."""
    seconds = suite.seconds
    if suite.total:
        seconds = min(seconds, max(_LEAST_SECONDS, suite.total / max(1, number)))
    budget = Budget(suite.steps, round(seconds, 1))
    return [dataclasses.replace(s, case=dataclasses.replace(s.case, budget=budget)) for s in found]
