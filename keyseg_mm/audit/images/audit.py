"""A whole audit of encrypted images: what attackers hold, controls and attacks, the referee's checks, the report."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from keyseg_mm.audit.engine.attack import Run, Scenario
from keyseg_mm.audit.engine.audit import Order, Planned, run_all
from keyseg_mm.audit.engine.executor import Executor
from keyseg_mm.audit.engine.runner import Runner
from keyseg_mm.audit.engine.suites import IMAGE_SUITES, ImageSuite, Say
from keyseg_mm.audit.images import attacks, controls  # noqa: F401 - registers all of them
from keyseg_mm.audit.images.attack import ATTACKS, CONTROLS, ImageCase, KnownPairs, OwnPhotos, Restored
from keyseg_mm.audit.images.page import render
from keyseg_mm.audit.images.reading import read_photos, stamp_of
from keyseg_mm.audit.images.referee import ImageReferee, trusted_stamp
from keyseg_mm.audit.images.report import ImageReport
from keyseg_mm.audit.images.scheme import Images, Scheme, key_spaces
from keyseg_mm.audit.images.scoring import ImageScore
from keyseg_mm.audit.images.summary import summarise
from keyseg_mm.audit.report.page import write_report
from keyseg_mm.audit.report.pictures import colour_png
from keyseg_mm.errors import KeysegError
from keyseg_mm.keys.key import SecretKey
from keyseg_mm.keys.locator import locate_real
from keyseg_mm.mm.config import read_config
from keyseg_mm.stamp import Stamp

_SHOWN = 3  # images shown in the report


@dataclass(frozen=True, kw_only=True)
class ImageOrder(Order):
    """What is to be audited, and how. The config's test pipeline says how images are encrypted, or the checkpoint."""

    limits: ImageSuite | None = None  # in place of the suite's own
    photos: int | None = None  # under attack, and of the attacker's, at most so many of each

    def planned(self, key: SecretKey, say: Say) -> Planned:
        subject = read_subject(self, key, say)
        return _planned(self, ImageReferee(key, subject.stamp, subject.attacked), subject)


@dataclass(frozen=True, eq=False)
class Subject:
    """What is attacked: images (N, H, W, 3) of bytes, red first, of whole blocks."""

    stamp: Stamp  # tells how they are encrypted
    attacked: Images  # plain; only the referee gets them
    public: Images  # the attacker's own photos, of the same size
    suite: ImageSuite
    full_size: tuple[int, ...]  # height and width of the images before they were scaled


class ImageRunner(Runner[ImageCase, Restored, ImageScore]):
    """Runs attacks on images.

    Args:
        referee: holds the key and the plain images, and scores.
        folder: for the results.
        shown: numbers of the images whose restorations are kept with each result.
        bars: show a progress bar for each run.
    """

    score: ClassVar[type[ImageScore]] = ImageScore

    def __init__(self, referee: ImageReferee, folder: Path, shown: Sequence[int], bars: bool = True) -> None:
        super().__init__(folder, tuple(shown), bars)
        self._referee, self._shown = referee, shown

    def judge(self, attempt: Restored, run: Run[ImageCase, Restored]) -> tuple[ImageScore, tuple[str, ...]]:
        return self._referee.judge(attempt), tuple(colour_png(attempt.images[i]) for i in self._shown)


def audit_images(
    order: ImageOrder, key: SecretKey | None = None, executor: Executor | None = None, say: Say = lambda text: None
) -> ImageReport:
    """Audit the encrypted images of a config, and write ``report.json``.

    Args:
        order: what and how.
        key: the true key, where its locator was followed already.
        executor: runs attacks side by side; None: one after another, in this process.
        say: told what is going on, a line at a time.

    Returns:
        The report, as it is written.

    Raises:
        KeysegError: nothing there encrypts images, or config, checkpoint, key and photos do not belong together;
            before anything long begins.
    """
    key = key or locate_real(order.key, 'key')
    return attack_images(order, key, read_subject(order, key, say), executor, say)


def attack_images(
    order: ImageOrder, key: SecretKey, subject: Subject, executor: Executor | None = None, say: Say = lambda text: None
) -> ImageReport:
    """Run all controls and attacks against images that the key encrypts, and write ``report.json``.

    Args:
        order: as of :func:`audit_images`.
        key: the true key; only the referee gets it.
        subject: what is attacked; without an executor it may be another one than the order leads to.
        executor: as of :func:`audit_images`.
        say: told what is going on, a line at a time.

    Raises:
        KeyMismatchError: the stamp is of another key.
        KeysegError: the images are not of whole blocks, or the photos of another size.
    """
    start = time.monotonic()
    referee = ImageReferee(key, subject.stamp, subject.attacked)
    runs = _planned(order, referee, subject)
    say('the referee checks itself')
    report = _report(order, referee, subject)
    outcomes = tuple(run_all(order, runs, executor, say))
    report = dataclasses.replace(report, outcomes=outcomes, seconds=round(time.monotonic() - start, 1))
    summary = summarise(report)
    write_report(order.out, report, summary, render(report, summary))
    return report


def _report(order: ImageOrder, referee: ImageReferee, subject: Subject) -> ImageReport:
    """What was audited and how the referee's checks came out, without results."""
    return ImageReport(
        **ImageReport.header(order.suite, order.seed),
        config=order.config.name,
        checkpoint=order.checkpoint.name if order.checkpoint else None,
        scheme=referee.scheme,
        key_spaces=key_spaces(referee.scheme),
        limits=subject.suite,
        images=len(subject.attacked),
        photos=len(subject.public),
        size=subject.attacked.shape[1:3],
        full_size=subject.full_size,
        positive=referee.positive_control(),
        negative=referee.negative_control(order.seed),
        plain=tuple(colour_png(image) for image in subject.attacked[:_SHOWN]),
        encrypted=tuple(colour_png(image) for image in referee.encrypted[:_SHOWN]),
    )


def read_subject(order: ImageOrder, key: SecretKey, say: Say) -> Subject:
    """Read what an order leads to.

    Raises:
        KeysegError: as of :func:`audit_images`.
    """
    cfg, suite = read_config(order.config), order.limits or IMAGE_SUITES[order.suite]
    stamp = stamp_of(cfg, order.checkpoint, key.id, functools.partial(trusted_stamp, key))
    if order.photos is not None:
        suite = dataclasses.replace(suite, scored=order.photos, photos=order.photos)
    attacked, public, full_size = read_photos(cfg, suite, Scheme.of(stamp).block, order.seed, say)
    return Subject(stamp, attacked, public, suite, full_size or attacked.shape[1:3])


def _planned(order: ImageOrder, referee: ImageReferee, subject: Subject) -> Planned:
    """All runs, controls first: an interrupted audit then has something to compare with."""
    runner = ImageRunner(referee, order.out / 'results', range(min(_SHOWN, len(subject.attacked))), order.bars)
    found = scenarios(referee, subject, order.seed)
    runs: list[Run[ImageCase, Restored]] = []
    runs += [Run(cls, where, 'control') for where in found for cls in CONTROLS.values() if where.wants(cls)]
    runs += [Run(cls, where) for where in found for cls in ATTACKS.values() if where.wants(cls)]
    return [(runner, run) for run in runs]


def scenarios(referee: ImageReferee, subject: Subject, seed: int) -> list[Scenario[ImageCase]]:
    """From the encrypted images alone to pairs of plain and encrypted ones.

    Raises:
        KeysegError: the attacker's photos are of another size.
    """
    encrypted, public = referee.encrypted, subject.public
    if encrypted.shape[1:] != public.shape[1:]:
        raise KeysegError(f'photos of {public.shape[1:]} are of no use against images of {encrypted.shape[1:]}')
    alone = ImageCase(referee.scheme, encrypted, seed=seed, budget=subject.suite.budget())
    informed = alone.granting(OwnPhotos(public))
    found = [
        Scenario('images', f'{len(encrypted)} encrypted images alone', alone, group='images'),
        Scenario('photos', f'and {len(public)} other photos', informed, frozenset({OwnPhotos}), 'photos'),
    ]
    for count in dict.fromkeys(min(count, len(public)) for count in subject.suite.pairs):
        title = f'and {count} of them encrypted with the key' if count > 1 else 'and one of them encrypted with the key'
        case = informed.granting(referee.pairs(public[:count]))
        found.append(Scenario(f'pairs-{count}', title, case, frozenset({KnownPairs}), 'pairs'))
    return found
