"""Transfer to another data set: a thief has no use for the model's own task, and wants a better start for his own.

He loads the protected weights into the same architecture with a classifier for his classes, and trains it on his
photos. A lock that scrambles the features should leave him with no better a start than none. The controls start from
nothing, or from public weights; the key holder's own transfer shows what there would be to gain. Nothing is compared
with what the authorised model says, as it speaks of other classes. Source: DeTrans and the literature on transfer
learning (Yosinski et al., NeurIPS 2014; Kornblith et al., CVPR 2019).

In short trainings on few photos much hangs on the initial weights that one happens to draw. So the controls from
scratch have two draws, and what these differ by is the noise below which an advantage says nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from keyseg_mm.audit.engine.attack import KEY_HOLDER, Attack
from keyseg_mm.audit.engine.scenario import Situation
from keyseg_mm.audit.engine.suites import Level, Say
from keyseg_mm.audit.model.attacks.finetuning import FineTuning
from keyseg_mm.audit.model.case import Budget, Case, Photos
from keyseg_mm.audit.model.controls import CONTROLS, FromScratch
from keyseg_mm.audit.model.data import read_album
from keyseg_mm.audit.model.loading import Protected, architecture, fitting_sites, num_classes_of, other_classes
from keyseg_mm.errors import KeysegError
from keyseg_mm.mm.config import read_config
from keyseg_mm.mm.floor import constant_prediction_floor

Run = tuple[type[Attack], Situation, str]
_GRANTS = frozenset({'labelled', 'classifier'})


class Transfer:
    """The other data set, with its case and situations. It knows no key.

    Args:
        config: of the same architecture over the other data set.
        found: the protected checkpoint.
        file: the case of the file alone, on its own task.
        level: how thorough.
        shares: of the other data set's training photos.
        device: where to compute.
        say: told what is going on.

    Attributes:
        case: of the file and the other data set, without photos.
        held_out: labelled photos of the other data set that nobody trains on.

    Raises:
        KeysegError: no such config, another architecture, or photos that are not there or do not fit.
    """

    def __init__(
        self,
        config: Path,
        found: Protected,
        file: Case,
        level: Level,
        shares: tuple[float, ...],
        device: torch.device,
        say: Say,
    ) -> None:
        say(f'reading {config}, for the transfer')
        cfg = read_config(config)
        build = architecture(cfg, device, file.seed)
        model = build()
        classes = num_classes_of(model)
        other, classifier = other_classes(build, found, (file.num_classes, classes), config)
        sites = fitting_sites(build, other, config)
        try:
            album = read_album(cfg, model, level, shares, file.seed, device, say)
        except KeysegError as error:
            raise KeysegError(f'{config}: {error}') from None
        for photos in (album.held_out, album.shares[max(shares)]):
            _check_labels(photos, classes, config)
        self.config, self.held_out, self._album = config, album.held_out, album
        self._other_start = architecture(cfg, device, file.seed + 1)
        self.case = dataclasses.replace(
            file, weights=other.weights, build=build, num_classes=classes, sites=sites, classifier=classifier
        )

    def runs(self, attacks: Mapping[str, type[Attack]], budget: Budget) -> list[Run]:
        """All runs, controls first, then the key holder's and the attacks.

        Args:
            attacks: by name.
            budget: of each run: that of the runs on the model's own task.
        """
        here = self._situations(budget)
        found: list[Run] = []
        for kind, classes in (('control', CONTROLS), (KEY_HOLDER, attacks), ('attack', attacks)):
            tried = [cls for cls in classes.values() if kind != KEY_HOLDER or issubclass(cls, FineTuning)]
            found += [(cls, situation, kind) for situation in here for cls in tried if situation.wants(cls)]
            if kind == 'control':
                again = [cls for cls in tried if issubclass(cls, FromScratch)]
                found += [(cls, self._again(situation), kind) for situation in here for cls in again]
        return found

    def _situations(self, budget: Budget) -> list[Situation]:
        found = []
        for share, photos in self._album.shares.items():
            case = dataclasses.replace(self.case, labelled=photos, budget=budget)
            title = f'transfer to {self.config.name}, {len(photos)} photos ({100 * share:g} %)'
            found.append(Situation(f'transfer-{share:g}', title, case, _GRANTS, share))
        return found

    def _again(self, situation: Situation) -> Situation:
        """The same with other initial weights and another order of the photos."""
        case = dataclasses.replace(situation.case, build=self._other_start, seed=self.case.seed + 1)
        title = f'{situation.title}, another draw'
        return dataclasses.replace(situation, name=f'{situation.name}-again', title=title, case=case)

    def facts(self) -> dict[str, Any]:
        """What was transferred to, for the report: all public."""
        labels = self.held_out.labels
        assert labels is not None
        return {
            'config': self.config.name,
            'num_classes': self.case.num_classes,
            'held_out': len(labels),
            'train_photos': len(self._album.train),
            'photo_size': list(labels.shape[1:]),
            'floor': constant_prediction_floor([x.cpu().numpy() for x in labels], self.case.num_classes),
            'classifier': list(self.case.classifier or ()),
        }


def _check_labels(photos: Photos, classes: int, config: Path) -> None:
    """Labels that the model has no class for would fail every run.

    Raises:
        KeysegError: there are some, or none that count.
    """
    assert photos.labels is not None
    counted = photos.labels[photos.labels != photos.ignore_index]
    if not counted.numel():
        raise KeysegError(f'{config}: its photos have no labels that count; check the annotations and seg_map_suffix')
    if int(counted.max()) >= classes:
        raise KeysegError(
            f'{config}: its photos have the label {int(counted.max())}, and its model knows {classes} classes only; '
            'set num_classes of its heads, or reduce_zero_label, to what its data set has'
        )
