"""An audit of a model: what it reads, sets up, plans and reports."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from keyseg_mm.audit.engine.attack import SUITES, Budget, Grant, ModelSuite, Say
from keyseg_mm.audit.engine.audit import Order, Stage
from keyseg_mm.audit.engine.runner import Run, Runner, Scenario, runs_of
from keyseg_mm.audit.model import attacks  # noqa: F401 - registers all of them
from keyseg_mm.audit.model.attack import (
    ATTACKS,
    CONTROLS,
    Attempt,
    Case,
    Ciphertext,
    LabelledPhotos,
    PublicWeights,
    SecondFile,
    Target,
)
from keyseg_mm.audit.model.ciphertext import file_checks, weights_of
from keyseg_mm.audit.model.forward import ImageEncryption, Pixels
from keyseg_mm.audit.model.loading import (
    Album,
    Protected,
    architecture,
    fitting_sites,
    num_classes_of,
    read_protected,
    read_public,
)
from keyseg_mm.audit.model.referee import Referee
from keyseg_mm.audit.model.report import ModelReport, Pictures, Place, summarise
from keyseg_mm.audit.report.page import colour_png, png
from keyseg_mm.errors import KeysegError
from keyseg_mm.keys.identity import Key
from keyseg_mm.mm.config import read_config
from keyseg_mm.mm.floor import constant_prediction_floor

_SHOWN = 3  # held-out photos shown in the report
_LEAST_SECONDS = 3.0  # of a run: below that nothing is tried in earnest


@dataclass(frozen=True, kw_only=True)
class ModelOrder(Order):
    """What is to be audited, and how."""

    checkpoint: Path
    public: Path | None = None  # public plain weights
    second: Path | None = None  # another customer's checkpoint, or another release
    limits: ModelSuite | None = None  # in place of the suite's own
    shares: tuple[float, ...] | None = None  # of the training photos, in place of the suite's own
    device: str = 'cpu'

    def stage(self, key: Key, say: Say) -> Stage:
        suite, device, cfg = self.limits or SUITES[self.suite], torch.device(self.device), read_config(self.config)
        suite = dataclasses.replace(suite, shares=self.shares or suite.shares)
        say(f'reading {self.checkpoint}')
        protected = read_protected(self.checkpoint, device, key)
        second = read_protected(self.second, device, key) if self.second else None
        build = architecture(cfg, device, self.seed)
        model = build()
        sites = fitting_sites(build, protected, self.config)
        classes, grants = num_classes_of(model), _grants(self, protected, model)
        case = Case(protected.stamp, protected.weights, build, classes, sites, grants=grants, seed=self.seed)
        if second and case.target is not Target.MAPS:
            what = case.target.value
            raise KeysegError(f'--second is for models with encrypted feature maps; here the {what} are encrypted')
        album = Album.read(cfg, model, suite, self.seed, device, say)
        say('scoring the authorised model')
        referee = Referee(key, protected.own, case, album.held_out, protected.prefix)
        runner = Runner(referee, self.out / 'results', most_varied(album), self.bars)
        runs = _planned(case, album.shares, SecondFile(second.stamp, second.weights) if second else None, suite)

        def report(**common: Any) -> ModelReport:
            sealed = protected.sealed
            checks = () if sealed is None else file_checks(sealed, key, public_of(case))
            return _report(self, referee, album, checks=checks, budget=runs[0].scenario.case.budget, **common)

        return Stage(runner, runs, report, summarise)


def _report(order: ModelOrder, referee: Referee, album: Album, **known: Any) -> ModelReport:
    case, labels = referee.case, album.held_out.labels
    no_key, bare = referee.judge(Attempt())  # the file as it is
    return ModelReport(
        public=order.public.name if order.public else None,
        second=order.second.name if order.second else None,
        key_id=case.stamp.key_id,
        target=case.target,
        places=_places(case),
        device=order.device,
        held_out=len(labels),
        train_photos=len(album.train),
        photo_size=tuple(labels.shape[1:]),
        floor=constant_prediction_floor([x.cpu().numpy() for x in labels], case.num_classes),
        authorised=referee.full,
        no_key=no_key,
        pictures=_pictures(album, referee, bare),
        **known,
    )


def _planned(
    file: Case, shares: Mapping[float, LabelledPhotos], second: SecondFile | None, suite: ModelSuite
) -> list[Run[Case, Attempt]]:
    """All runs, controls first."""
    public = ' and public weights' if PublicWeights in file else ''
    found = [Scenario('file', f'the file alone{public}', file)]
    for share, photos in shares.items():
        title, new = f'{len(photos)} photos ({100 * share:g} %){public}', frozenset({LabelledPhotos})
        found.append(Scenario(f'photos-{share:g}', title, file.granting(photos), new, share=share, photos=len(photos)))
    tried = runs_of(found, CONTROLS, 'control')
    if second is not None:
        more = dataclasses.replace(found[-1], case=found[-1].case.granting(second), new=frozenset({SecondFile}))
        found.append(dataclasses.replace(more, name='second', title='a second checkpoint'))
    tried += runs_of(found, ATTACKS)
    seconds = suite.seconds
    if suite.total:
        seconds = min(seconds, max(_LEAST_SECONDS, suite.total / max(1, len(tried))))
    budget = Budget(suite.steps, round(seconds, 1))
    cases = {where.name: dataclasses.replace(where.case, budget=budget) for where in found}  # one for all runs of it
    return [
        dataclasses.replace(run, scenario=dataclasses.replace(run.scenario, case=cases[run.scenario.name]))
        for run in tried
    ]


def public_of(case: Case) -> Mapping[str, Tensor] | None:
    """The public weights, where they were granted."""
    return case[PublicWeights].weights if PublicWeights in case else None


def _grants(order: ModelOrder, protected: Protected, model: nn.Module) -> tuple[Grant, ...]:
    """What somebody with the file alone has besides it.

    Raises:
        KeysegError: the public weights cannot be read, or are of another model.
    """
    found: list[Grant] = []
    stamp = protected.stamp
    if not stamp.maps and not stamp.tensors:
        entry = stamp.embeddings[0] if stamp.embeddings else stamp.images[0]
        found.append(ImageEncryption(entry, Pixels.of(model)))
    if protected.sealed is not None:
        found.append(Ciphertext(weights_of(protected.sealed)))
    if order.public:
        found.append(PublicWeights(read_public(order.public, model.state_dict(), order.device)))
    return tuple(found)


def _places(file: Case) -> tuple[Place, ...]:
    """Where what is encrypted, for the report."""
    if ImageEncryption in file:
        images = file[ImageEncryption]
        return (Place('the image', {'type': images.method, 'block': images.block}, channels=3),)
    if file.stamp.tensors:
        tensors = file.stamp.tensors
        return (Place(f'{len(tensors)} tensors', tensors[0].transform, values=sum(t.count for t in tensors)),)
    return tuple(Place(entry.point, entry.transform, entry.channels) for entry in file.stamp.maps)


def _pictures(album: Album, referee: Referee, bare: Tensor) -> Pictures:
    """The shown photos with their label maps."""
    shown = most_varied(album)
    maps = (album.held_out.labels, referee.authorised, bare)
    truth, right, without = (tuple(png(labels[i]) for i in shown) for labels in maps)
    images = tuple(colour_png(album.test.picture(album.numbers[i])) for i in shown)
    return Pictures(images, truth, right, without, album.test.palette)


def most_varied(album: Album) -> list[int]:
    """Numbers of the held-out photos with most classes, chosen by the truth alone: not by what came out well."""
    variety = [len(torch.unique(label)) for label in album.held_out.labels]
    return sorted(sorted(range(len(variety)), key=lambda i: -variety[i])[:_SHOWN])
