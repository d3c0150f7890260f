"""A whole audit of a model: read, set up, check the referee, run controls and attacks, and report."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from keyseg_mm.audit.engine.attack import Grant
from keyseg_mm.audit.engine.audit import Order, Outcome, Planned, Stage
from keyseg_mm.audit.engine.budget import Budget
from keyseg_mm.audit.engine.suites import SUITES, ModelSuite, Say
from keyseg_mm.audit.model import attacks  # noqa: F401 - registers all of them
from keyseg_mm.audit.model.attack import ATTACKS, Attempt, Case, LabelledPhotos, PublicWeights, SecondFile, Target
from keyseg_mm.audit.model.data import Album
from keyseg_mm.audit.model.input_cipher import ImageEncryption, Pixels
from keyseg_mm.audit.model.loading import (
    Protected,
    architecture,
    fitting_sites,
    num_classes_of,
    read_protected,
    read_public,
)
from keyseg_mm.audit.model.page import render
from keyseg_mm.audit.model.referee import Referee
from keyseg_mm.audit.model.referees import TransferReferee, referee_for
from keyseg_mm.audit.model.report import ModelReport, Pictures, Place, TransferReport
from keyseg_mm.audit.model.runner import ModelRunner, budgeted, runs, scenarios
from keyseg_mm.audit.model.spectra import by_model_names, distances
from keyseg_mm.audit.model.summary import ModelSummary, summarise
from keyseg_mm.audit.model.transfer import Transfer
from keyseg_mm.audit.report.pictures import colour_png, png
from keyseg_mm.errors import KeysegError
from keyseg_mm.keys.key import SecretKey
from keyseg_mm.mm.config import read_config
from keyseg_mm.mm.floor import constant_prediction_floor

Build = Callable[[], nn.Module]
_SHOWN = 3  # held-out photos shown in the report


@dataclass(frozen=True, kw_only=True)
class ModelOrder(Order):
    """What is to be audited, and how."""

    checkpoint: Path
    public: Path | None = None  # public plain weights
    second: Path | None = None  # another customer's checkpoint, or another release
    limits: ModelSuite | None = None  # in place of the suite's own
    shares: tuple[float, ...] | None = None  # of the training photos, in place of the suite's own
    device: str = 'cpu'
    transfer: Path | None = None  # config of the same architecture over another data set

    def stage(self, key: SecretKey, say: Say) -> ModelStage:
        return set_up(self, key, say)


@dataclass(frozen=True)
class ModelStage(Stage):
    """Everything read, checked and set up for an audit of a model."""

    order: ModelOrder
    suite: ModelSuite
    protected: Protected
    referee: Referee  # of the file
    album: Album  # photos of the file's own task
    transfer: Transfer | None
    budget: Budget  # of each run
    own: Planned  # all runs on the file's own task
    elsewhere: Planned  # all runs of the transfer

    @property
    def planned(self) -> Planned:
        """Those elsewhere come last."""
        return [*self.own, *self.elsewhere]

    def report(self) -> ModelReport:
        order, referee, found = self.order, self.referee, self.protected
        bare = referee.judge(Attempt())  # the file as it is
        return ModelReport(
            **ModelReport.header(order.suite, order.seed),
            config=order.config.name,
            checkpoint=order.checkpoint.name,
            public=order.public.name if order.public else None,
            second=order.second.name if order.second else None,
            key_id=found.stamp.key_id,
            target=referee.case.target,
            places=_places(referee.case),
            limits=self.suite,
            budget=self.budget,
            device=order.device,
            **_task(self.album, referee.case),
            authorised=referee.full,
            no_key=bare.score,
            positive=referee.positive_control(),
            negative=referee.negative_control(order.seed),
            pictures=_pictures(self.album, referee.authorised, bare.labels),
            transfer=self._transfer_report(),
        )

    def conclude(self, report: ModelReport, outcomes: tuple[Outcome, ...]) -> tuple[ModelReport, ModelSummary, str]:
        own = len(self.own)
        transfer = report.transfer and dataclasses.replace(report.transfer, outcomes=outcomes[own:])
        report = dataclasses.replace(report, outcomes=outcomes[:own], transfer=transfer)
        summary = summarise(report)
        return report, summary, render(report, summary)

    def _transfer_report(self) -> TransferReport | None:
        if self.transfer is None:
            return None
        there = self.transfer
        check = TransferReferee(self.referee, there.case, there.album.held_out).positive_control()
        task = _task(there.album, there.case)
        return TransferReport(**task, config=there.config.name, classifier=there.case.classifier, check=check)


def set_up(order: ModelOrder, key: SecretKey, say: Say) -> ModelStage:
    """Read and check all that an audit needs, and stamp its runs.

    Raises:
        KeysegError: config, checkpoints, key and photos do not belong together.
    """
    suite, device, cfg = order.limits or SUITES[order.suite], torch.device(order.device), read_config(order.config)
    suite = dataclasses.replace(suite, shares=order.shares or suite.shares)
    say(f'reading {order.checkpoint}')
    protected = read_protected(order.checkpoint, device)
    second = read_protected(order.second, device) if order.second else None
    build = architecture(cfg, device, order.seed)
    file = _file_case(order, protected, suite, build)
    transfer = Transfer.read(order.transfer, protected, file, suite, device, say) if order.transfer else None
    album = Album.read(cfg, build(), suite, order.seed, device, say)
    say('scoring the authorised model')
    referee = referee_for(key, protected.own, file, album.held_out, protected.prefix)
    granted = SecondFile(second.stamp, second.weights) if second else None
    found = scenarios(referee, album.shares, granted, suite)
    found = budgeted(found, suite, len(runs(found, ATTACKS)))
    budget, folder = found[0].case.budget, order.out / 'results'
    runner = ModelRunner(referee, folder, most_varied(album.held_out), order.bars)
    own: Planned = [(runner, run) for run in runs(found, ATTACKS)]
    elsewhere: Planned = []
    if transfer is not None:
        there = ModelRunner(TransferReferee(referee, transfer.case, transfer.album.held_out), folder, [], order.bars)
        elsewhere = [(there, run) for run in transfer.runs(ATTACKS, budget)]
    return ModelStage(order, suite, protected, referee, album, transfer, budget, own, elsewhere)


def _file_case(order: ModelOrder, protected: Protected, suite: ModelSuite, build: Build) -> Case:
    """The case of the file alone.

    Raises:
        KeysegError: the checkpoint is not one of the config's model, or grants that no attack on it makes use of.
    """
    model, device = build(), torch.device(order.device)
    grants: list[Grant] = []
    stamp = protected.stamp
    if not stamp.maps and not stamp.tensors:
        entry = stamp.embeddings[0] if stamp.embeddings else stamp.images[0]
        grants.append(ImageEncryption(entry, Pixels.of(model)))
    if order.public:
        public = read_public(order.public, device)
        grants.append(PublicWeights(by_model_names(public, model.state_dict()) or public))
    file = Case(
        stamp,
        protected.weights,
        build,
        num_classes_of(model),
        fitting_sites(build, protected, order.config),
        grants=tuple(grants),
        seed=order.seed,
        budget=suite.budget(),
    )
    maps = (Target.MAPS,)
    for option, given, kinds in (('second', order.second, maps), ('transfer', order.transfer, (*maps, Target.BLOCKS))):
        if given and file.target not in kinds:
            what = file.target.value
            raise KeysegError(f'--{option} is for models with encrypted feature maps; here the {what} are encrypted')
    return file


def _places(file: Case) -> tuple[Place, ...]:
    """Where what is encrypted, for the report."""
    if ImageEncryption in file:
        images = file[ImageEncryption]
        return (Place('the image', {'type': images.method, 'block': images.block}, channels=3),)
    if file.stamp.tensors:
        tensors = file.stamp.tensors
        return (Place(f'{len(tensors)} tensors', tensors[0].transform, values=sum(t.count for t in tensors)),)
    near = distances(file.stamp, file.weights, file[PublicWeights].weights) if PublicWeights in file else {}
    return tuple(Place(e.point, e.transform, e.channels, distance=near.get(e.point)) for e in file.stamp.maps)


def _task(album: Album, case: Case) -> dict[str, Any]:
    """Facts of a task: the fields that reports of the file's own task and of another one have in common."""
    labels = album.held_out.labels
    return {
        'num_classes': case.num_classes,
        'held_out': len(labels),
        'train_photos': len(album.train),
        'photo_size': tuple(labels.shape[1:]),
        'floor': constant_prediction_floor([x.cpu().numpy() for x in labels], case.num_classes),
    }


def _pictures(album: Album, authorised: Tensor, bare: Tensor) -> Pictures:
    """The shown photos with their label maps."""
    photos, classes, shown = album.held_out, album.test.classes, most_varied(album.held_out)
    truth, right, without = (tuple(png(labels[i]) for i in shown) for labels in (photos.labels, authorised, bare))
    images = tuple(colour_png(album.test.picture(photos.images[i])) for i in shown)
    return Pictures(images, truth, right, without, classes.names, classes.palette)


def most_varied(photos: LabelledPhotos) -> list[int]:
    """Numbers of the photos with most classes in them, chosen by the truth alone: not by what came out well."""
    variety = [len(torch.unique(label)) for label in photos.labels]
    return sorted(sorted(range(len(variety)), key=lambda i: -variety[i])[:_SHOWN])
