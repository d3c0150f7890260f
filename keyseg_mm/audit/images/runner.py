"""Running attacks on images one by one: budgeted, seeded, resumable, and none of them can end the suite."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keyseg_mm.atomic import write_json
from keyseg_mm.audit.engine.keeping import attempted, feed, finished
from keyseg_mm.audit.images.attack import Restored, Restoring
from keyseg_mm.audit.images.case import ImageCase
from keyseg_mm.audit.images.referee import ImageReferee
from keyseg_mm.audit.report.pictures import colour_png


@dataclass(frozen=True)
class Stand:
    """What an attacker of images has to go by.

    Attributes:
        name: for file names.
        title: for people.
        case: what he holds.
        grants: fields of the case that this one grants beyond the stand before.
        group: which line of the summary it belongs to: ``'images'``, ``'photos'`` or ``'pairs'``.
    """

    name: str
    title: str
    case: ImageCase
    grants: frozenset[str]
    group: str

    def wants(self, attack: type[Restoring]) -> bool:
        """Whether an attack is possible here, and does other things than where less is granted."""
        new = not self.grants or bool(self.grants & (attack.needs | attack.helped_by))
        return new and attack.possible(self.case)


class ImageRunner:
    """Runs attacks on images against one referee.

    Args:
        referee: holds the key and the plain images, and scores.
        folder: for the results; made if it is missing.
        shown: numbers of the images whose restorations are kept with each result.
        bars: show a progress bar for each run.
    """

    def __init__(self, referee: ImageReferee, folder: Path, shown: list[int], bars: bool = True) -> None:
        self.referee, self.folder, self.shown, self.bars = referee, folder, shown, bars
        folder.mkdir(parents=True, exist_ok=True)
        self._digests: dict[str, str] = {}

    def run(self, attack: type[Restoring], stand: Stand, kind: str = 'attack') -> dict[str, Any]:
        """Run one attack or control, or take over its finished result.

        Args:
            attack: the class.
            stand: where.
            kind: ``'attack'`` or ``'control'``.

        Returns:
            The result, as it stands in its JSON file.
        """
        path = self.folder / f'{kind}-{attack.name}-{stand.name}.json'
        digest = self.digest(attack, stand)
        result = finished(path, digest)
        if result is None:
            result = {**_about(attack, stand, kind), 'digest': digest, **self._attempt(attack, stand)}
            write_json(path, result)
        return result

    def digest(self, attack: type[Restoring], stand: Stand) -> str:
        """SHA-256 of all that a result depends on."""
        if stand.name not in self._digests:
            state = hashlib.sha256()
            for item in dataclasses.fields(stand.case):
                feed(state, [item.name, getattr(stand.case, item.name)])
            self._digests[stand.name] = state.hexdigest()
        parts = [_code(), attack.name, self.shown, self._digests[stand.name]]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def _attempt(self, attack: type[Restoring], stand: Stand) -> dict[str, Any]:
        """Run and score; an error becomes part of the result."""
        case, title = stand.case, f'{attack.title}, {stand.title}'
        return attempted(
            title, case.seed, case.budget, self.bars, lambda progress: attack().run(case, progress), self._judge
        )

    def _judge(self, restored: Restored) -> dict[str, Any]:
        score, found = self.referee.judge(restored)
        return {
            **score.as_dict(),
            'found': found,
            'pictures': [colour_png(restored.images[i]) for i in self.shown],
        }


def _about(attack: type[Restoring], stand: Stand, kind: str) -> dict[str, Any]:
    return {
        'kind': kind,
        'name': attack.name,
        'title': attack.title,
        'needs': sorted(attack.needs),
        'source': attack.source,
        'cost': attack.cost,
        'situation': stand.name,
        'situation_title': stand.title,
        'group': stand.group,
    }


def _code() -> str:
    """Digest of the code of all attacks on images: they share much, and a run of all takes minutes."""
    own = Path(inspect.getfile(Restoring)).parent
    state = hashlib.sha256()
    for path in sorted([*(own / 'attacks').glob('*.py'), own / 'scheme.py', own / 'scoring.py', own / 'controls.py']):
        state.update(path.read_bytes())
    return state.hexdigest()
