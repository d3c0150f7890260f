"""A whole audit of encrypted images: what attackers hold, controls and attacks, the referee's checks, the report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from keyseg_mm.audit.engine.attack import Run, Scenario
from keyseg_mm.audit.engine.audit import Order, Planned, Stage
from keyseg_mm.audit.engine.runner import Runner
from keyseg_mm.audit.engine.suites import IMAGE_SUITES, Say, Suite
from keyseg_mm.audit.images import attacks, controls  # noqa: F401 - registers all of them
from keyseg_mm.audit.images.attack import ATTACKS, CONTROLS, ImageCase, KnownPairs, OwnPhotos, Restored
from keyseg_mm.audit.images.reading import read_photos
from keyseg_mm.audit.images.referee import ImageReferee, scheme_of
from keyseg_mm.audit.images.report import ImageReport, summarise
from keyseg_mm.audit.images.scheme import Images
from keyseg_mm.audit.report.pictures import colour_png
from keyseg_mm.keys.identity import Key
from keyseg_mm.mm.config import read_config

_SHOWN = 3  # images shown in the report


@dataclass(frozen=True, kw_only=True)
class ImageOrder(Order):
    """The audit of encrypted images. The config's test pipeline says how they are encrypted, or the checkpoint."""

    limits: Suite | None = None  # in place of the suite's own

    def stage(self, key: Key, say: Say) -> ImageStage:
        cfg, suite = read_config(self.config), self.limits or IMAGE_SUITES[self.suite]
        scheme = scheme_of(cfg, self.checkpoint, key)
        attacked, public = read_photos(cfg, suite, scheme.block, self.seed, say)
        return ImageStage(self, suite, ImageReferee(key, scheme, attacked), attacked, public)


@dataclass(frozen=True, eq=False)
class ImageStage(Stage):
    """What is attacked: images (N, H, W, 3) of bytes, red first, of whole blocks."""

    order: ImageOrder
    suite: Suite
    referee: ImageReferee
    attacked: Images  # plain; only the referee gets them
    public: Images  # the attacker's own photos, of the same size
    summarise: ClassVar = staticmethod(summarise)

    @property
    def planned(self) -> Planned:
        shown = range(min(_SHOWN, len(self.attacked)))
        runner = Runner(self.referee, self.order.out / 'results', shown, self.order.bars)
        found = self.scenarios()
        runs: list[Run[ImageCase, Restored]] = []
        runs += [Run(cls, where, 'control') for where in found for cls in CONTROLS.values() if where.wants(cls)]
        runs += [Run(cls, where) for where in found for cls in ATTACKS.values() if where.wants(cls)]
        return [(runner, run) for run in runs]

    def scenarios(self) -> list[Scenario[ImageCase]]:
        """From the encrypted images alone to pairs of plain and encrypted ones."""
        encrypted, public = self.referee.encrypted, self.public
        alone = ImageCase(self.referee.scheme, encrypted, seed=self.order.seed, budget=self.suite.budget())
        informed = alone.granting(OwnPhotos(public))
        paired = informed.granting(self.referee.pairs(public[:1]))
        return [
            Scenario('images', f'{len(encrypted)} encrypted images alone', alone),
            Scenario('photos', f'and {len(public)} other photos', informed, frozenset({OwnPhotos})),
            Scenario('pairs', 'and one of them encrypted with the key', paired, frozenset({KnownPairs})),
        ]

    def report(self) -> ImageReport:
        order, referee = self.order, self.referee
        return ImageReport(
            suite=order.suite,
            seed=order.seed,
            config=order.config.name,
            checkpoint=order.checkpoint.name if order.checkpoint else None,
            scheme=referee.scheme,
            ciphers=referee.scheme.ciphers,
            limits=self.suite,
            images=len(self.attacked),
            photos=len(self.public),
            size=self.attacked.shape[1:3],
            positive=referee.positive_control(),
            negative=referee.negative_control(order.seed),
            plain=tuple(colour_png(image) for image in self.attacked[:_SHOWN]),
            encrypted=tuple(colour_png(image) for image in referee.encrypted[:_SHOWN]),
        )
