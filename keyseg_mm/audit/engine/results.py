"""What comes of runs, typed from the attack to the page, and how that goes to JSON and back."""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Generic, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

#: A key holder's run is made by the referee, with the true key on.
Kind = Literal['control', 'key-holder', 'attack']
S = TypeVar('S')
T = TypeVar('T')


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
    group: str = ''
    share: float | None = None
    key_share: float | None = None
    photos: int = 0
    beyond_files: bool = False


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


def from_json(kind: Any, value: Any) -> Any:
    """Undo :func:`to_json`.

    Args:
        kind: a dataclass, or any type that its fields have.
        value: what was read.

    Raises:
        KeyError, TypeError, ValueError: the value is not of that type.
    """
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return None if value is None else from_json(_member(inner, value), value)
    cls = origin or kind
    if dataclasses.is_dataclass(cls):
        hints, chosen = get_type_hints(cls), dict(zip(getattr(cls, '__parameters__', ()), inner))
        parts = {f.name: (hints[f.name], value[f.name]) for f in dataclasses.fields(cls)}
        return cls(**{name: from_json(_filled(hint, chosen), part) for name, (hint, part) in parts.items()})  # type: ignore[operator]
    if kind is float:
        return math.inf if value is None else float(value)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return kind(value)
    if origin in (tuple, list) and not isinstance(value, str):
        return origin(from_json(inner[0], item) for item in value)
    if origin is dict:
        return {name: from_json(inner[1], item) for name, item in value.items()}
    return value


def _filled(hint: Any, chosen: dict[Any, Any]) -> Any:
    """A hint with the type that a generic class was given in place of its variable."""
    if hint in chosen:
        return chosen[hint]
    free = getattr(hint, '__parameters__', ())
    return hint[tuple(chosen.get(one, Any) for one in free)] if free else hint


def _member(kinds: tuple[Any, ...], value: Any) -> Any:
    """Which type of a union a value has: of several dataclasses, the one with its fields."""
    known = [kind for kind in kinds if kind is not type(None)]
    for kind in known:
        cls = get_origin(kind) or kind
        if dataclasses.is_dataclass(cls) and {f.name for f in dataclasses.fields(cls)} == set(value):
            return kind
    return known[0]
