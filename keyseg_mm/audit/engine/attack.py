"""What an attacker holds, what they may spend, and what an attack is.

Cases follow Kerckhoffs: what is public are fields of a case. Whatever else a scenario grants (photos, public weights,
part of the key) is a :class:`Grant`, each a type of its own, so that an attack says by types what it needs and gets
exactly that. A case that holds a secret refuses to be built, so an attack cannot win by accident.
"""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Literal, TypeVar

import numpy as np
import torch

from keyseg_mm.audit.engine.contents import refuse_secrets
from keyseg_mm.errors import KeysegError

#: Called with the share done, 0 to 1, and a few words on where the attack stands.
Progress = Callable[[float, str], None]
#: Told what is going on, a line at a time.
Say = Callable[[str], None]


@dataclass(frozen=True)
class Budget:
    """What an attack may spend: optimisation steps (or queries, or tries) and seconds of wall time."""

    steps: int
    seconds: float

    def clock(self) -> Clock:
        """A clock that starts now."""
        return Clock(self)


class Clock:
    """Counts an attack's steps and seconds against its budget.

    Attributes:
        steps: steps taken.
    """

    def __init__(self, budget: Budget) -> None:
        self.budget, self.steps, self._start = budget, 0, time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._start

    @property
    def share(self) -> float:
        """How much of the budget is gone, 0 to 1, by whichever of steps and seconds is further."""
        return min(1.0, max(self.steps / max(self.budget.steps, 1), self.seconds / max(self.budget.seconds, 1e-9)))

    @property
    def out_of_time(self) -> bool:
        """The seconds are used up."""
        return self.seconds >= self.budget.seconds

    def tick(self, steps: int = 1) -> bool:
        """Take steps; False, with nothing taken, if the budget has none left."""
        if self.steps + steps > self.budget.steps or self.out_of_time:
            return False
        self.steps += steps
        return True


def seed_everything(seed: int) -> None:
    """Seed the generators of torch, numpy and Python: an attack may draw from any of them."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


@dataclass(frozen=True)
class Suite:
    """How thorough a suite is."""

    steps: int  # optimisation steps of a run
    seconds: float  # of a run
    scored: int | None  # photos that are scored on, or images under attack, at most; None for all there are
    photos: int | None  # the attacker's own, at most
    longest: int | None  # longer side of all of them, at most; larger ones are scaled down

    def budget(self) -> Budget:
        """What each run may spend."""
        return Budget(self.steps, self.seconds)


@dataclass(frozen=True)
class ModelSuite(Suite):
    """Of an audit of a model."""

    shares: tuple[float, ...] = (0.01, 0.1)  # of the training photos that attackers have
    total: float | None = None  # seconds of all runs together, aimed at by giving each less; None for no aim


SUITES = {
    'quick': ModelSuite(60, 12.0, 16, 32, 384, (0.1,), 200.0),
    'standard': ModelSuite(400, 300.0, 60, 256, 768, (0.01, 0.1)),
    'full': ModelSuite(2000, 3600.0, None, None, None, (0.01, 0.05, 0.1)),
}
IMAGE_SUITES = {
    'quick': Suite(150, 30.0, 16, 32, 192),
    'standard': Suite(2000, 400.0, 40, 200, 512),
    'full': Suite(10000, 3600.0, 60, 200, None),
}


class Grant:
    """Base of all that may be granted; subclasses are frozen dataclasses."""

    name: ClassVar[str]  # for reports


_G = TypeVar('_G', bound=Grant)


_Case = TypeVar('_Case', bound='BaseCase')


@dataclass(frozen=True, eq=False, kw_only=True)
class BaseCase:
    """Base of all cases; subclasses add what is public.

    ``kind in case`` tells whether a kind of grant is there, and ``case[kind]`` gives it.

    Raises:
        SecretExposedError: a field or grant holds a key, a map, or a model with a protection attached.
    """

    grants: tuple[Grant, ...] = ()  # what the attacker has besides what is public
    seed: int = 0  # of all that an attack draws
    budget: Budget = Budget(200, 300.0)  # what it may spend

    def __post_init__(self) -> None:
        for item in dataclasses.fields(self):
            if item.name != 'grants':
                refuse_secrets(getattr(self, item.name), item.name)
        for grant in self.grants:
            refuse_secrets(grant, grant.name)

    def __contains__(self, kind: type[Grant]) -> bool:
        return any(isinstance(grant, kind) for grant in self.grants)

    def __getitem__(self, kind: type[_G]) -> _G:
        for grant in sorted(self.grants, key=lambda grant: type(grant) is not kind):  # the kind itself goes first
            if isinstance(grant, kind):
                return grant
        raise KeysegError(f'this case grants nothing of the kind {kind.name!r}; an attack names it in its needs')

    def granting(self: _Case, *grants: Grant) -> _Case:
        """The same with more grants, each in place of one of the same type."""
        kinds = {type(grant) for grant in grants}
        kept = tuple(grant for grant in self.grants if type(grant) not in kinds)
        return dataclasses.replace(self, grants=(*kept, *grants))


@dataclass(kw_only=True)
class BaseAttempt:
    """What all attacks hand back; each arena adds its own."""

    exhausted: bool = False  # the budget ended it before it was done by its own measure
    notes: str = ''  # what a reader should know of this attempt, in a sentence or two


C = TypeVar('C', bound=BaseCase)


A = TypeVar('A', bound=BaseAttempt)


class BaseAttack(Generic[C, A]):
    """Base of all attacks and controls. A subclass's docstring says how it works.

    Attributes:
        name: for command lines and file names.
        title: for people.
        needs: kinds of grants that it cannot do without.
        helped_by: kinds of grants that it makes use of if they are there.
        source: where it comes from.
        cost: what it costs, in words.
        kind: ``'recover'`` guesses the key or the images, ``'retrain'`` returns a model that it trained.
    """

    name: ClassVar[str] = ''
    title: ClassVar[str] = ''
    needs: ClassVar[frozenset[type[Grant]]] = frozenset()
    helped_by: ClassVar[frozenset[type[Grant]]] = frozenset()
    source: ClassVar[str] = ''
    cost: ClassVar[str] = ''
    kind: ClassVar[Literal['recover', 'retrain']] = 'recover'

    def run(self, case: C, progress: Progress) -> A:
        """Attack with what a case holds; ``progress`` is to be called now and then."""
        raise NotImplementedError

    @classmethod
    def possible(cls, case: C) -> bool:
        """Whether the attack makes sense here, and the case grants what it needs."""
        return all(kind in case for kind in cls.needs)


_K = TypeVar('_K', bound=BaseAttack[Any, Any])


_R = TypeVar('_R', bound=BaseAttack[Any, Any])


class Registry(dict[str, type[_K]], Generic[_K]):
    """Attacks, or controls, by name, in the order in which they are run."""

    def register(self, cls: type[_R]) -> type[_R]:
        """Class decorator: enter an attack.

        Raises:
            KeysegError: its name is taken, or it lacks something that the report shows.
        """
        known: type[Any] = self.get(cls.name, cls)  # type: ignore[arg-type]
        if not all((cls.name, cls.title, cls.source, cls.cost)):
            raise KeysegError(f'{cls.__name__}: an attack has a name, title, source and cost')
        if known.__qualname__ != cls.__qualname__:
            raise KeysegError(f'{cls.name}: two attacks of this name: {known.__name__} and {cls.__name__}')
        self[cls.name] = cls  # type: ignore[assignment]
        return cls
