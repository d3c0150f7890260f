"""The runs of an audit of a model: in which scenarios, and against which referee."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from keyseg_mm.audit.engine.attack import Run, Scenario
from keyseg_mm.audit.engine.budget import Budget
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
)
from keyseg_mm.audit.model.referee import Referee
from keyseg_mm.audit.model.scoring import Score
from keyseg_mm.audit.report.pictures import png

_LEAST_SECONDS = 3.0  # of a run: below that nothing is tried in earnest


class ModelRunner(Runner[Case, Attempt, Score]):
    """Runs attacks on a model.

    Args:
        referee: holds the key and scores.
        folder: for the results.
        shown: numbers of held-out photos whose label maps are kept with each result.
        bars: show a progress bar for each run.
    """

    score: ClassVar[type[Score]] = Score

    def __init__(self, referee: Referee, folder: Path, shown: Sequence[int], bars: bool = True) -> None:
        super().__init__(folder, (referee.held_out, *shown), bars)
        self._referee, self._shown = referee, shown

    def judge(self, attempt: Attempt, run: Run[Case, Attempt]) -> tuple[Score, tuple[str, ...]]:
        verdict = self._referee.judge(attempt)
        return verdict.score, tuple(png(verdict.labels[i]) for i in self._shown)


def planned(
    file: Case,
    shares: Mapping[float, LabelledPhotos],
    second: SecondFile | None,
    attacks: Mapping[str, type[Attack]],
    suite: ModelSuite,
) -> list[Run[Case, Attempt]]:
    """All runs, controls first: an interrupted audit then has something to compare with.

    Args:
        file: what somebody with the file alone, and public weights, holds.
        shares: photos by the attacker's share of the training set; the scenarios go from the poorest to the richest.
        second: another protected file, if there is one.
        attacks: that are tried.
        suite: what they may spend.
    """
    public = ' and public weights' if PublicWeights in file else ''
    found = [Scenario('file', f'the file alone{public}', file)]
    for share, photos in shares.items():
        title, new = f'{len(photos)} photos ({100 * share:g} %){public}', frozenset({LabelledPhotos})
        found.append(Scenario(f'photos-{share:g}', title, file.granting(photos), new, share=share, photos=len(photos)))
    tried = [Run(cls, where, 'control') for where in found for cls in CONTROLS.values() if where.wants(cls)]
    if second is not None:
        more = dataclasses.replace(found[-1], case=found[-1].case.granting(second), new=frozenset({SecondFile}))
        found.append(dataclasses.replace(more, name='second', title='a second checkpoint'))
    tried += [Run(cls, where) for where in found for cls in attacks.values() if where.wants(cls)]
    budget = _budget(suite, len(tried))
    return [dataclasses.replace(run, scenario=_with(budget, run.scenario)) for run in tried]


def _budget(suite: ModelSuite, number: int) -> Budget:
    """What each of a number of runs may spend."""
    seconds = suite.seconds
    if suite.total:
        seconds = min(seconds, max(_LEAST_SECONDS, suite.total / max(1, number)))
    return Budget(suite.steps, round(seconds, 1))


def _with(budget: Budget, scenario: Scenario[Case]) -> Scenario[Case]:
    return dataclasses.replace(scenario, case=dataclasses.replace(scenario.case, budget=budget))
