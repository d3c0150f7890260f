"""What an audit of a model reports: the contents of ``report.json``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from keyseg_mm.audit.engine.budget import Budget
from keyseg_mm.audit.engine.results import Failure, Result
from keyseg_mm.audit.engine.suites import ModelSuite
from keyseg_mm.audit.model.attack import Target
from keyseg_mm.audit.model.scoring import Check, Score
from keyseg_mm.audit.report.page import Report


@dataclass(frozen=True)
class Place:
    """Where something is encrypted: a point, or what else there is of places."""

    point: str
    transform: dict[str, Any]
    channels: int | None = None
    values: int | None = None  # where values of weights are encrypted
    distance: float | None = None  # of the closest layer that carries or reads the map to the public weights


@dataclass(frozen=True)
class Pictures:
    """Photos that a report shows, label maps of them, all as base64 PNGs, and what the labels mean."""

    photos: tuple[str, ...]
    truth: tuple[str, ...]
    authorised: tuple[str, ...]  # what the model says with the right key
    no_key: tuple[str, ...]
    classes: tuple[str, ...]
    palette: tuple[tuple[int, ...], ...]  # RGB


@dataclass(frozen=True, kw_only=True)
class ModelReport(Report):
    """Of a whole audit; ``config``, ``checkpoint``, ``public`` and ``second`` are names of files."""

    FORMAT: ClassVar[str] = 'keyseg_mm audit'
    TEMPLATE: ClassVar[str] = 'model.html.j2'
    config: str
    checkpoint: str
    public: str | None
    second: str | None
    key_id: str
    target: Target
    places: tuple[Place, ...]
    limits: ModelSuite
    budget: Budget  # of each run
    device: str
    num_classes: int
    held_out: int  # photos that are scored on
    train_photos: int  # from which the attackers' are chosen
    photo_size: tuple[int, ...]  # height and width
    floor: float  # mIoU of the best constant guess
    authorised: Score  # with the right key
    no_key: Score  # the file as it is
    positive: Check  # the true key scores full marks
    negative: Check  # a random key does not
    pictures: Pictures
    outcomes: tuple[Result[Score] | Failure, ...] = ()
