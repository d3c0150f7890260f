"""Running attacks and controls one by one: budgeted, seeded, resumable, and none of them can end the suite.

Each finished run is a JSON file of its own. A later audit takes it over as it is if nothing that it depends on has
changed: the case, what it is scored on, and the code.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from keyseg_mm.atomic import make_folder, write_json
from keyseg_mm.audit.engine.attack import Run
from keyseg_mm.audit.engine.budget import Progress, seed_everything
from keyseg_mm.audit.engine.results import Failure, Result, read_result

_BAR = '  {desc:<44.44} {percentage:3.0f}% |{bar:20}| {postfix}'
#: A run may exceed its seconds by this much, for what cannot be cut short, before it is flagged.
_GRACE = 1.25
_PACKAGE = Path(__file__).parents[1]


class Judge(Protocol):
    """What a runner asks of a referee."""

    scores: Any  # their class
    held_out: Any  # what scores depend on besides the case

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
        self.folder, self.bars, self._judge, self._shown = folder, bars, judge, tuple(shown)
        self._digest_of = functools.cache(_digest_of)  # cases are told apart as objects, not by what they hold

    def run(self, run: Run[Any, Any]) -> Result[Any] | Failure:
        """Run one attack or control, or take over its finished result."""
        return self.kept(run) or self.keep(run, self.attempt(run))

    def kept(self, run: Run[Any, Any]) -> Result[Any] | None:
        """The result of an earlier run of the same inputs; damaged files and failures are run again."""
        try:
            read = json.loads(self._path(run).read_text(encoding='utf-8'))
            result: Result[Any] = read_result(read, self._judge.scores)
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return result if result.digest == self.digest(run) else None

    def keep(self, run: Run[Any, Any], outcome: Result[Any] | Failure) -> Result[Any] | Failure:
        """Store what came of a run; returns it."""
        make_folder(self.folder)
        write_json(self._path(run), dataclasses.asdict(outcome))
        return outcome

    def digest(self, run: Run[Any, Any]) -> str:
        """SHA-256 of all that a result depends on."""
        parts = (
            run.name,
            _code(),
            self._digest_of(run.scenario.case),
            self._digest_of((self._judge.held_out, *self._shown)),
        )
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def attempt(self, run: Run[Any, Any]) -> Result[Any] | Failure:
        """Run and score; whatever an attack raises becomes a failure, as the others are still worth running."""
        case, start = run.scenario.case, time.monotonic()
        about, digest = run.about(), self.digest(run)
        seed_everything(case.seed)
        with tqdm(desc=run.title, total=1.0, miniters=0, disable=not self.bars, leave=False, bar_format=_BAR) as bar:
            try:
                found = run.attack().run(case, _progress_on(bar))
                seconds = round(time.monotonic() - start, 2)
                score, pictures = self._judge.pictured(found, self._shown)
            except Exception as error:
                where = traceback.extract_tb(error.__traceback__)[-1]
                words = f'{type(error).__name__}: {error} ({Path(where.filename).name}, line {where.lineno})'
                return Failure(about, digest, round(time.monotonic() - start, 2), words)
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


def _digest_of(value: Any) -> str:
    state = hashlib.sha256()
    _feed(state, value)
    return state.hexdigest()


def _feed(state: Any, value: Any) -> None:
    """Feed a value into a hash, with its structure, so that no two different ones feed the same bytes."""
    if isinstance(value, Tensor):
        flat = value.detach().cpu().contiguous()
        state.update(f'T{flat.dtype}{tuple(flat.shape)}'.encode())
        state.update(flat.reshape(-1).view(torch.uint8).numpy().tobytes() if flat.numel() else b'')
    elif isinstance(value, np.ndarray):
        state.update(f'A{value.dtype}{value.shape}'.encode() + value.tobytes())
    elif isinstance(value, Mapping):
        _feed(state, ['M', *(part for name in sorted(value) for part in (name, value[name]))])
    elif isinstance(value, (tuple, list)):
        state.update(f'L{len(value)}'.encode())
        for item in value:
            _feed(state, item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        _feed(state, [type(value).__name__, *(getattr(value, item.name) for item in dataclasses.fields(value))])
    elif callable(value):  # functions: the config of the model that they make, and the weights, say what they are
        _feed(state, [repr(part) for part in getattr(value, 'args', ())[:1]])
    else:
        text = repr(value)
        state.update(f'R{len(text)}'.encode() + text.encode())
