"""What an attacker holds, what an attack is, and in which scenarios it is run.

Cases follow Kerckhoffs: what is public are fields of a case. Whatever else a scenario grants (photos, public weights,
part of the key) is a :class:`Grant`, each a type of its own, so that an attack says by types what it needs and gets
exactly that. A case that holds a secret refuses to be built, so an attack cannot win by accident.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Literal, TypeVar

from keyseg_mm.audit.engine.budget import Budget, Progress
from keyseg_mm.audit.engine.results import About, Kind
from keyseg_mm.audit.engine.secrecy import refuse_secrets
from keyseg_mm.errors import KeysegError


class Grant:
    """Base of all that may be granted; subclasses are frozen dataclasses.

    Attributes:
        name: for reports.
    """

    name: ClassVar[str]


_G = TypeVar('_G', bound=Grant)
_Case = TypeVar('_Case', bound='BaseCase')


@dataclass(frozen=True, eq=False, kw_only=True)
class BaseCase:
    """Base of all cases; subclasses add what is public.

    ``kind in case`` tells whether a kind of grant is there, and ``case[kind]`` gives it.

    Attributes:
        grants: what the attacker has besides what is public.
        seed: of all that an attack draws.
        budget: what it may spend.

    Raises:
        SecretExposedError: a field or grant holds a key, a map, or a model with a protection attached.
    """

    grants: tuple[Grant, ...] = ()
    seed: int = 0
    budget: Budget = Budget(200, 300.0)

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
    """What all attacks hand back; each arena adds its own.

    Attributes:
        exhausted: the budget ended it before it was done by its own measure.
        notes: what a reader should know of this attempt, in a sentence or two.
    """

    exhausted: bool = False
    notes: str = ''


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
        return About(
            kind=self.kind,
            name=attack.name,
            title=attack.title,
            needs=tuple(sorted(kind.name for kind in attack.needs)),
            source=attack.source,
            cost=attack.cost,
            family=attack.kind,
            scenario=where.name,
            scenario_title=where.title,
            share=where.share,
            photos=where.photos,
        )
