"""What an attack on encrypted images is: a registered class with its needs, source and cost, and what it hands back."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from keyseg_mm.audit.engine.attack import Progress
from keyseg_mm.audit.images.case import ImageCase
from keyseg_mm.audit.images.scheme import BlockMap, Images, Scheme
from keyseg_mm.errors import KeysegError

RESTORINGS: dict[str, type[Restoring]] = {}
_R = TypeVar('_R', bound='type[Restoring]')
_FIELDS = {f.name for f in dataclasses.fields(ImageCase)}


@dataclass
class Restored:
    """What an attack came up with.

    Attributes:
        images: one for each encrypted image, uint8 (N, H, W, 3).
        guess: its estimate of the cipher, if it makes one.
        exhausted: the budget ended it before it was done by its own measure.
        notes: what a reader should know of this attempt, in a sentence or two.
        trail: figures for curves.
    """

    images: Images
    guess: BlockMap | None = None
    exhausted: bool = False
    notes: str = ''
    trail: list[dict[str, Any]] = field(default_factory=list)


class Restoring:
    """Base of all attacks on encrypted images. A subclass's docstring says how it works.

    Attributes:
        name: for file names.
        title: for people.
        needs: names of the fields of :class:`ImageCase` that must not be None.
        helped_by: names of those that it makes use of if they are there.
        source: where it comes from.
        cost: what it costs, in words.
    """

    name: ClassVar[str] = ''
    title: ClassVar[str] = ''
    needs: ClassVar[frozenset[str]] = frozenset()
    helped_by: ClassVar[frozenset[str]] = frozenset()
    source: ClassVar[str] = ''
    cost: ClassVar[str] = ''

    def run(self, case: ImageCase, progress: Progress) -> Restored:
        """Attack.

        Args:
            case: all that the attacker holds.
            progress: to be called now and then.
        """
        raise NotImplementedError

    @classmethod
    def possible(cls, case: ImageCase) -> bool:
        """Whether it makes sense against the case's encryption, and the case grants what it needs."""
        return cls.fits(case.scheme) and all(getattr(case, name) is not None for name in cls.needs)

    @classmethod
    def fits(cls, scheme: Scheme) -> bool:
        """Whether the attack makes sense against such an encryption."""
        return True


def register(cls: _R) -> _R:
    """Class decorator: enter an attack into :data:`RESTORINGS`.

    Raises:
        KeysegError: its name is taken, or it lacks something that the report shows.
    """
    unknown = {*cls.needs, *cls.helped_by} - _FIELDS
    if unknown:
        raise KeysegError(f'{cls.__name__}: a case of images has no {", ".join(sorted(unknown))}')
    if not all((cls.name, cls.title, cls.source, cls.cost)):
        raise KeysegError(f'{cls.__name__}: an attack has a name, title, source and cost')
    if RESTORINGS.get(cls.name, cls).__qualname__ != cls.__qualname__:
        raise KeysegError(f'{cls.name}: two attacks of this name: {RESTORINGS[cls.name].__name__} and {cls.__name__}')
    RESTORINGS[cls.name] = cls
    return cls
