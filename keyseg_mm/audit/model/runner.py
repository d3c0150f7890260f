"""Running attacks and controls one by one: budgeted, seeded, resumable, and none of them can end the suite.

Each finished run is a JSON file of its own. It is taken over as it is in a later run if nothing that it depends on has
changed: the case, the held-out photos, and the source of the attack.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
from pathlib import Path
from typing import Any

from keyseg_mm.atomic import write_json
from keyseg_mm.audit.engine import attack as attack_module
from keyseg_mm.audit.engine.attack import KEY_HOLDER, Attack, Attempt, Progress
from keyseg_mm.audit.engine.keeping import attempted, feed, finished
from keyseg_mm.audit.engine.scenario import Situation
from keyseg_mm.audit.model import case as case_module
from keyseg_mm.audit.model import scoring, training
from keyseg_mm.audit.model.attacks.finetuning import FineTuning
from keyseg_mm.audit.model.case import Case
from keyseg_mm.audit.model.referee import Judge
from keyseg_mm.audit.report.pictures import png


class Runner:
    """Runs attacks against one referee.

    Args:
        referee: holds the key and scores: the referee itself, or what it is elsewhere.
        folder: for the results; made if it is missing.
        shown: numbers of held-out photos whose label maps are kept with each result.
        bars: show a progress bar for each run.
    """

    def __init__(self, referee: Judge, folder: Path, shown: list[int], bars: bool = True) -> None:
        self.referee, self.folder, self.shown, self.bars = referee, folder, shown, bars
        folder.mkdir(parents=True, exist_ok=True)
        self._known: dict[int, tuple[Any, str]] = {}  # digests of large things; the things are kept, so ids stay theirs

    def run(self, attack: type[Attack], situation: Situation, kind: str = 'attack') -> dict[str, Any]:
        """Run one attack or control, or take over its finished result.

        Args:
            attack: the class.
            situation: where.
            kind: ``'attack'``, ``'control'``, or ``'key-holder'``: a fine-tuning with the true key's maps on.

        Returns:
            The result, as it stands in its JSON file.
        """
        path = self.folder / f'{kind}-{attack.name}-{situation.name}.json'
        digest = self.digest(attack, situation)
        result = finished(path, digest)
        if result is None:
            result = {**_about(attack, situation, kind), 'digest': digest, **self._attempt(attack, situation, kind)}
            write_json(path, result)
        return result

    def digest(self, attack: type[Attack], situation: Situation) -> str:
        """SHA-256 of all that a result depends on."""
        case = situation.case
        parts: list[Any] = [attack.name, _source_of(attack), self.shown]
        for item in dataclasses.fields(case):
            # build and oracle are functions: the model's config and the weights, digested too, say what they are
            if item.name not in ('build', 'oracle', 'sites'):
                parts.append([item.name, self._digest_of(getattr(case, item.name))])
        parts.append(self._digest_of(self.referee.held_out))
        parts.append(case.oracle is not None)
        parts.append(repr(getattr(case.build, 'args', ())[:1]))  # of what the audit builds: the config of the model
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def _digest_of(self, value: Any) -> str:
        if id(value) not in self._known:
            state = hashlib.sha256()
            feed(state, value)
            self._known[id(value)] = (value, state.hexdigest())
        return self._known[id(value)][1]

    def _attempt(self, attack: type[Attack], situation: Situation, kind: str) -> dict[str, Any]:
        """Run and score; an error becomes part of the result."""
        case, title = situation.case, f'{attack.title}, {situation.title}'
        return attempted(
            title,
            case.seed,
            case.budget,
            self.bars,
            lambda progress: self._tried(attack, case, progress, kind),
            lambda attempt: self._judge(attempt, situation),
        )

    def _tried(self, attack: type[Attack], case: Case, progress: Progress, kind: str) -> Attempt:
        if kind == KEY_HOLDER and issubclass(attack, FineTuning):
            return self.referee.with_key(attack, case, progress)
        return attack().run(case, progress)

    def _judge(self, attempt: Attempt, situation: Situation) -> dict[str, Any]:
        verdict = self.referee.judge(attempt, situation.case)
        found = verdict.recovery
        return {
            **verdict.score.as_dict(),
            'recovery': None if found is None else found.mean,
            'recovery_by_point': {} if found is None else found.points,
            'images_used': int(attempt.images_used),
            'labels_png': [png(verdict.labels[i]) for i in self.shown],
        }


def _about(attack: type[Attack], situation: Situation, kind: str) -> dict[str, Any]:
    return {
        'kind': kind,
        'name': attack.name,
        'title': attack.title,
        'needs': sorted(attack.needs),
        'source': attack.source,
        'cost': attack.cost,
        'family': attack.kind,
        **situation.as_dict(),
    }


def _source_of(attack: type[Attack]) -> str:
    """Digest of the code that an attack's result depends on: its own file, its helpers and the audit's common parts."""
    own = Path(inspect.getfile(attack))
    helpers = sorted(own.parent.glob('_*.py')) if own.parent.name == 'attacks' else []
    common = [Path(str(m.__file__)) for m in (attack_module, case_module, scoring, training)]
    state = hashlib.sha256()
    for path in [own, *helpers, *common]:
        state.update(path.read_bytes() if path.is_file() else b'')
    return state.hexdigest()
