"""Situations: what an attacker may be granted besides the public file, each one a case of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from keyseg_mm.audit.engine.attack import Attack
from keyseg_mm.audit.model.case import Case

#: Fields whose grant is more than a file: part of the key, or access to a running authorised model.
BEYOND_FILES = frozenset({'known', 'known_tables', 'recorded', 'oracle'})


@dataclass(frozen=True)
class Situation:
    """One situation.

    Attributes:
        name: for files, as ``photos-0.1``.
        title: for people.
        case: what the attacker holds.
        grants: fields of the case that are new here: an attack that needs none of them was run before.
        share: share of the training photos, or None where there are none.
        key_share: share of the key's rows that leaked, or None.
    """

    name: str
    title: str
    case: Case
    grants: frozenset[str]
    share: float | None = None
    key_share: float | None = None

    @property
    def beyond_files(self) -> bool:
        """Whether more is granted than files: such attacks do not count for the headline."""
        return bool(self.grants & BEYOND_FILES)

    @property
    def transfer(self) -> bool:
        """Whether the attacker's task is another than the file's."""
        return self.case.classifier is not None

    def wants(self, attack: type[Attack]) -> bool:
        """Whether the attack is to be run here: it makes sense, all that it needs is there, and some of it is new."""
        first = not self.grants
        fits = attack.transfers or not self.transfer
        return fits and attack.possible(self.case) and (first or bool(attack.needs & self.grants))

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        photos = len(self.case.labelled) if self.case.labelled is not None else 0
        return {
            'situation': self.name,
            'situation_title': self.title,
            'share': self.share,
            'key_share': self.key_share,
            'photos': photos,
            'beyond_files': self.beyond_files,
        }
