"""An audit of encrypted images: the photos that it reads, its runs, what it reports, and what that comes to.

For each of three attackers (encrypted images alone; other photos too; known pairs too) the headline is the SSIM of the
best attack less that of the best control. Who has more can do all that who has less does. Known pairs do not count for
the verdict: these encryptions are the same for every block, and no such one withstands them.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import cv2
import numpy as np
from mmengine.config import Config

from keyseg_mm.audit.engine.attack import IMAGE_SUITES, Say, Suite
from keyseg_mm.audit.engine.audit import Order, Stage
from keyseg_mm.audit.engine.datasets import ENCRYPTING, PhotoSet, nested_shares
from keyseg_mm.audit.engine.runner import Result, Runner, Scenario, Scored, finished, runs_of
from keyseg_mm.audit.images import attacks  # noqa: F401 - registers all of them
from keyseg_mm.audit.images.attack import ATTACKS, CONTROLS, ImageCase, Images, KnownPairs, OwnPhotos, Scheme
from keyseg_mm.audit.images.referee import ImageReferee, ImageScore, scheme_of
from keyseg_mm.audit.report.page import FALLEN, Report, Summary, colour_png
from keyseg_mm.errors import KeysegError
from keyseg_mm.keys.identity import Key
from keyseg_mm.maps.pixels import COLOURS
from keyseg_mm.mm.config import read_config, type_of

#: SSIM below which an advantage is no more than chance of these few photos.
NOISE = 0.03
#: What attackers have, by the names of their scenarios.
ATTACKERS = {'images': 'encrypted images alone', 'photos': 'and other photos', 'pairs': 'and known pairs'}
# Steps from the first of which on an image is no plain one any more, or no image; labels are of no interest here.
_ENDS = (*ENCRYPTING, 'PackSegInputs')
_SKIPPED = ('LoadAnnotations',)
_SHOWN = 3  # images shown in the report


@dataclass(frozen=True, kw_only=True)
class ImageReport(Report):
    """Of a whole audit. The plain images that it shows are for their owner."""

    FORMAT: ClassVar[str] = 'keyseg_mm audit of images'
    TEMPLATE: ClassVar[str] = 'images.html.j2'
    WORDS: ClassVar[str] = 'images.words.j2'
    scheme: Scheme
    ciphers: float  # log2 of how many there are of that scheme
    limits: Suite
    images: int  # under attack
    photos: int  # of the attacker's
    size: tuple[int, ...]  # height and width of both
    plain: tuple[str, ...]  # images that are shown, as base64 PNGs
    encrypted: tuple[str, ...]


@dataclass(frozen=True)
class Gain:
    """Best attack against best control of one attacker."""

    has: str  # which attacker, see ATTACKERS
    attack: Scored[ImageScore]
    control: Scored[ImageScore]
    advantage: float  # SSIM between both

    @property
    def title(self) -> str:
        """What the attacker has, in words."""
        return ATTACKERS[self.has]


def summarise(report: ImageReport) -> Summary[Gain]:
    """Headlines, verdict and advice from the figures of a report."""
    rows = tuple(row for has in ATTACKERS if (row := _gain(report, has)))
    headline = max((row for row in rows if row.has != 'pairs'), key=lambda row: row.advantage, default=None)
    pairs = next((row for row in rows if row.has == 'pairs'), None)
    return report.summary(rows, headline, _level(report, headline), rows=rows, pairs=pairs, noise=NOISE)


def _rank(result: Result[ImageScore]) -> tuple[float, ...]:
    """By SSIM, then by PSNR, then those that also found the cipher, then by how much the attacker had."""
    score, has = result.score, list(ATTACKERS).index(result.about.scenario)
    return round(score.ssim, 6), score.psnr, float(bool(score.found)), has


def _gain(report: ImageReport, has: str) -> Gain | None:
    """Best attack against best control of an attacker; None where one of both is missing."""
    enough = list(ATTACKERS)[: list(ATTACKERS).index(has) + 1]
    usable = sorted((r for r in finished(report.outcomes) if r.about.scenario in enough), key=_rank, reverse=True)
    tried, controls = finished(usable, 'attack'), finished(usable, 'control')
    if not tried or not controls:
        return None
    attack, control = (Scored(best.about, best.score) for best in (tried[0], controls[0]))
    return Gain(has, attack, control, attack.score.ssim - control.score.ssim)


def _level(report: ImageReport, headline: Gain | None) -> str:
    """``void``, ``holds``, ``leaks`` or ``falls``."""
    if headline is None or report.is_void:
        return 'void'
    if headline.advantage <= NOISE:
        return 'holds'
    return 'falls' if headline.advantage >= FALLEN * (1 - headline.control.score.ssim) else 'leaks'


def read_photos(cfg: Config, suite: Suite, block: int, seed: int, say: Say) -> tuple[Images, Images]:
    """Images to be attacked, and an attacker's photos, none of them among the others; all of one size, red first.

    Sides are multiples of the block, of two at least.

    Raises:
        KeysegError: there are none, or they cannot be read.
    """
    test, train = (PhotoSet(cfg, split, _until_encrypted, block, suite.longest, 2) for split in ('test', 'train'))
    say(f'reading {min(suite.scored or len(test), len(test))} images to attack')
    attacked = _load(test, suite.scored, seed, ())
    train.size = test.size
    say(f"reading {min(suite.photos or len(train), len(train))} photos of the attacker's")
    public = _load(train, suite.photos, seed, [name for _, name in attacked if name])
    if not public:
        raise KeysegError('all training photos are among those under attack; give the attacker others')
    return np.stack([image for image, _ in attacked]), np.stack([image for image, _ in public])


def _load(photos: PhotoSet, count: int | None, seed: int, but: Sequence[str]) -> list[tuple[Images, str]]:
    """Photos chosen by chance, red first and of one size, with their files; none of some files."""
    order = nested_shares(len(photos), (1.0,), seed, None)[1.0]
    chosen = ((image, name) for image, name in photos.read(order, _image_of) if name not in but)
    found = []
    for image, name in itertools.islice(chosen, count):
        size, image = photos.fit(image.shape[:2]), np.ascontiguousarray(image[..., ::-1])
        if image.shape[:2] != size:
            image = cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA)
        found.append((image, name))
    return found


def _image_of(sample: Any) -> tuple[Images, str]:
    """A sample's image and its file."""
    image = sample['img']
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.shape[2:] != (COLOURS,):
        raise KeysegError('no colour image of bytes where it is to be encrypted')
    return image, str(sample.get('img_path', ''))


def _until_encrypted(pipeline: list[Any]) -> list[Any]:
    """The steps before the first that encrypts."""
    ends = [i for i, step in enumerate(pipeline) if type_of(step) in _ENDS]
    return [step for step in pipeline[: min(ends, default=len(pipeline))] if type_of(step) not in _SKIPPED]


@dataclass(frozen=True, kw_only=True)
class ImageOrder(Order):
    """The audit of encrypted images. The config's test pipeline says how they are encrypted, or the checkpoint."""

    limits: Suite | None = None  # in place of the suite's own

    def stage(self, key: Key, say: Say) -> Stage:
        cfg, suite = read_config(self.config), self.limits or IMAGE_SUITES[self.suite]
        scheme = scheme_of(cfg, self.checkpoint, key)
        attacked, public = read_photos(cfg, suite, scheme.block, self.seed, say)
        return set_up(self, suite, ImageReferee(key, scheme, attacked), attacked, public)


def set_up(order: ImageOrder, suite: Suite, referee: ImageReferee, attacked: Images, public: Images) -> Stage:
    """Plan the runs, from the encrypted images alone to pairs of plain and encrypted ones.

    Args:
        order: what is asked for.
        suite: how thorough.
        referee: who scores.
        attacked: the plain images under attack (N, H, W, 3), red first, of whole blocks; only the referee gets them.
        public: the attacker's own photos, of the same size.
    """
    alone = ImageCase(referee.scheme, referee.encrypted, seed=order.seed, budget=suite.budget())
    informed = alone.granting(OwnPhotos(public))
    paired = informed.granting(referee.pairs(public[:1]))
    found = [
        Scenario('images', f'{len(attacked)} encrypted images alone', alone),
        Scenario('photos', f'and {len(public)} other photos', informed, frozenset({OwnPhotos})),
        Scenario('pairs', 'and one of them encrypted with the key', paired, frozenset({KnownPairs})),
    ]
    report = functools.partial(
        ImageReport,
        scheme=referee.scheme,
        ciphers=referee.scheme.ciphers,
        limits=suite,
        images=len(attacked),
        photos=len(public),
        size=attacked.shape[1:3],
        plain=tuple(map(colour_png, attacked[:_SHOWN])),
        encrypted=tuple(map(colour_png, referee.encrypted[:_SHOWN])),
    )
    runner = Runner(referee, order.out / 'results', range(min(_SHOWN, len(attacked))), order.bars)
    return Stage(runner, [*runs_of(found, CONTROLS, 'control'), *runs_of(found, ATTACKS)], report, summarise)
