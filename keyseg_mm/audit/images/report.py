"""What an audit of encrypted images reports, as it stands in ``report.json``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from keyseg_mm.audit.engine.results import Failure, Result
from keyseg_mm.audit.engine.suites import ImageSuite
from keyseg_mm.audit.images.scheme import KeySpace, Scheme
from keyseg_mm.audit.images.scoring import ImageScore, Similarity
from keyseg_mm.audit.report.page import Report


@dataclass(frozen=True)
class ImageCheck:
    """A check that the referee made of itself: what it scored, and whether that is as it must be."""

    score: Similarity
    passed: bool


@dataclass(frozen=True, kw_only=True)
class ImageReport(Report):
    """Of a whole audit. The plain images that it shows are for their owner."""

    FORMAT: ClassVar[str] = 'keyseg_mm audit of images'
    config: str
    checkpoint: str | None  # that said how images are encrypted
    scheme: Scheme
    key_spaces: tuple[KeySpace, ...]  # of that scheme, and of others
    limits: ImageSuite
    images: int  # under attack
    photos: int  # of the attacker's
    size: tuple[int, ...]  # height and width of both
    full_size: tuple[int, ...]  # of the images before they were scaled
    positive: ImageCheck  # the true key scores full marks
    negative: ImageCheck  # random keys do not
    plain: tuple[str, ...]  # images that are shown, as base64 PNGs
    encrypted: tuple[str, ...]
    outcomes: tuple[Result[ImageScore] | Failure, ...] = ()
