"""The rows of a comparison: what is known of each method, kept in a file of its folder as it becomes known."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from keyseg_mm.atomic import write_json
from keyseg_mm.compare.order import NONE, RIGHT

DONE, NOT_APPLICABLE, FAILED = 'done', 'not applicable', 'failed'
UNCOUNTABLE = 'uncountable'
_FILE = 'row.json'
_PRIVATE = ('checkpoint', 'mark', 'pictures')  # not for compare.json


@dataclass(frozen=True)
class Timed:
    """Time of a protected inference over a plain one: median and quartiles, rounds, and the image's (height, width)."""

    median: float
    q1: float
    q3: float
    rounds: int
    size: list[int]


@dataclass(frozen=True)
class Audited:
    """What a comparison tells of an audit: its headline; or why there is none, where the audit refused."""

    why: str = ''
    advantage: float = 0.0
    level: str = ''
    photos: int = 0
    attack: str = ''
    attack_miou: float = 0.0
    control: str = ''
    control_miou: float = 0.0


@dataclass
class Row:
    """What is known of a method.

    Attributes:
        name, title: of the method.
        status: done, not applicable or failed; ``why`` says why.
        miou: in percent, by who tested: ``right``, ``none``, ``wrong-1`` and so on.
        key_space: log2 of the number of its tables, or ``'uncountable'``; None for the plain model.
        overhead, audit: as far as there are any.
        checkpoint: its path, from the method's folder where it is inside; empty before there is one.
        mark: of the checkpoint and the one that it was made from: other ones have other marks.
        pictures: label maps of the shown photos, as base64 PNGs, by who tested.
    """

    name: str
    title: str
    status: str = DONE
    why: str = ''
    miou: dict[str, float] = field(default_factory=dict)
    key_space: float | str | None = None
    overhead: Timed | None = None
    audit: Audited | None = None
    checkpoint: str = ''
    mark: str = ''
    pictures: dict[str, list[str]] = field(default_factory=dict)

    @classmethod
    def kept(cls, folder: Path, name: str, title: str) -> Row:
        """What an earlier run kept in a folder; damaged files count for nothing, and refusals are tried again."""
        try:
            found = json.loads((folder / _FILE).read_text(encoding='utf-8'))
            parts = {n: kind(**found[n]) for n, kind in (('overhead', Timed), ('audit', Audited)) if found[n]}
            row = cls(**{**found, **parts, 'title': title, 'status': DONE, 'why': ''})
        except (OSError, ValueError, TypeError, KeyError):
            return cls(name, title)
        row.audit = row.audit if row.audit and not row.audit.why else None
        return row

    def keep(self, folder: Path) -> None:
        """Write it down."""
        write_json(folder / _FILE, asdict(self))

    def public(self) -> dict[str, Any]:
        """Its figures, for ``compare.json``."""
        return {name: value for name, value in asdict(self).items() if name not in _PRIVATE}

    def fail(self, why: str, status: str = FAILED) -> None:
        """Note why the row ends here; of several reasons, the first."""
        if self.status == DONE:
            self.status, self.why = status, why

    @property
    def right(self) -> float | None:
        """mIoU with the right key, as far as it was tested."""
        return self.miou.get(RIGHT)

    @property
    def without(self) -> float | None:
        """mIoU without a key."""
        return self.miou.get(NONE)

    @property
    def worst(self) -> float | None:
        """The most that a wrong key gives."""
        return max((value for who, value in self.miou.items() if who not in (RIGHT, NONE)), default=None)


@dataclass(frozen=True)
class Figures:
    """The figures of a config: its folder's name, its own, the constant-prediction floor, test photos, and rows."""

    name: str
    config: str
    floor: float
    photos: int
    rows: list[Row]

    @property
    def plain(self) -> float | None:
        """mIoU of the plain model, which stands first; None where it failed."""
        return self.rows[0].right
