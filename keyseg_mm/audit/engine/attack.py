"""What an attack is: a registered class with its needs, source and cost, and what it hands back."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeVar

from torch import nn

from keyseg_mm.audit.engine.targets import MAPS
from keyseg_mm.audit.model.case import Case
from keyseg_mm.errors import KeysegError
from keyseg_mm.maps.base import Map

#: Called with the share done, 0 to 1, and a few words on where the attack stands.
Progress = Callable[[float, str], None]

#: Kind of the runs that the referee makes with the true key on, beside ``'attack'`` and ``'control'``.
KEY_HOLDER = 'key-holder'
ATTACKS: dict[str, type[Attack]] = {}
_A = TypeVar('_A', bound='type[Attack]')
_FIELDS = {f.name for f in dataclasses.fields(Case)}


@dataclass
class Attempt:
    """What an attack came up with.

    Attributes:
        guesses: estimates of the key's maps, by point; may be empty.
        model: the attacked model, scored as it is. If None the referee scores ``case.model(guesses)``.
        images_used: photos that were looked at, labelled or not.
        exhausted: the budget ended it before it was done by its own measure.
        notes: what a reader should know of this attempt, in a sentence or two.
        trail: figures for curves, one dict for each point of the curve.
    """

    guesses: Mapping[str, Map] = field(default_factory=dict)
    model: nn.Module | None = None
    images_used: int = 0
    exhausted: bool = False
    notes: str = ''
    trail: list[dict[str, Any]] = field(default_factory=list)


class Attack:
    """Base of all attacks. A subclass's docstring says how it works.

    Attributes:
        name: for command lines and file names.
        title: for people.
        needs: names of the fields of :class:`Case` that must not be None.
        source: where it comes from.
        cost: what it costs, in words.
        against: what of the model is encrypted where it makes sense, see :mod:`keyseg_mm.audit.engine.targets`. Most
            attacks look for channel maps.
        kind: ``'recover'`` returns guesses at the key, ``'retrain'`` returns a model.
        transfers: it makes sense where the attacker's classes are not the file's: it trains what belongs to them.
    """

    name: ClassVar[str] = ''
    title: ClassVar[str] = ''
    needs: ClassVar[frozenset[str]] = frozenset()
    source: ClassVar[str] = ''
    cost: ClassVar[str] = ''
    against: ClassVar[frozenset[str]] = frozenset({MAPS})
    kind: ClassVar[Literal['recover', 'retrain']] = 'recover'
    transfers: ClassVar[bool] = False

    def run(self, case: Case, progress: Progress) -> Attempt:
        """Attack.

        Args:
            case: all that the attacker holds.
            progress: to be called now and then.
        """
        raise NotImplementedError

    @classmethod
    def possible(cls, case: Case) -> bool:
        """Whether the attack is made for what is encrypted here, and the case grants what it needs."""
        return case.kind in cls.against and all(getattr(case, name) is not None for name in cls.needs)


def register(cls: _A) -> _A:
    """Class decorator: enter an attack into :data:`ATTACKS`.

    Raises:
        KeysegError: its name is taken, or it lacks something that the report shows.
    """
    unknown = set(cls.needs) - _FIELDS
    if unknown:
        raise KeysegError(f'{cls.__name__}: a case has no {", ".join(sorted(unknown))}')
    if cls.kind not in ('recover', 'retrain') or not all((cls.name, cls.title, cls.source, cls.cost)):
        raise KeysegError(f'{cls.__name__}: an attack has a name, title, source, cost and kind')
    if ATTACKS.get(cls.name, cls).__qualname__ != cls.__qualname__:
        raise KeysegError(f'{cls.name}: two attacks of this name: {ATTACKS[cls.name].__name__} and {cls.__name__}')
    ATTACKS[cls.name] = cls
    return cls
