"""Transfer to another data set: a thief has no use for the model's own task, and wants a better start for their own.

They load the protected weights into the same architecture with a classifier for their classes, and train it on their
photos. A lock that scrambles the features should leave them with no better a start than none. The controls start from
nothing, or from public weights; the key holder's own transfer shows what there would be to gain. Nothing is compared
with what the authorised model says, as it speaks of other classes. Source: DeTrans and the literature on transfer
learning (Yosinski et al., NeurIPS 2014; Kornblith et al., CVPR 2019).

In short trainings on few photos much hangs on the initial weights that one happens to draw. So the controls from
scratch have two draws, and what these differ by is the noise below which an advantage says nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from keyseg_mm.audit.engine.attack import Run, Scenario
from keyseg_mm.audit.engine.budget import Budget
from keyseg_mm.audit.engine.suites import ModelSuite, Say
from keyseg_mm.audit.model.attack import CONTROLS, Attack, Attempt, Case, LabelledPhotos, OtherClasses, Tuning
from keyseg_mm.audit.model.controls import FromScratch
from keyseg_mm.audit.model.data import Album
from keyseg_mm.audit.model.loading import Protected, architecture, fitting_sites, num_classes_of, other_classes
from keyseg_mm.errors import KeysegError
from keyseg_mm.mm.config import read_config

_NEW = frozenset({LabelledPhotos, OtherClasses})


@dataclass(frozen=True)
class Transfer:
    """The other data set, with its case and scenarios. It knows no key."""

    config: Path  # of the same architecture over the other data set
    case: Case  # of the file and the other data set, without photos
    album: Album
    other_start: Callable[[], nn.Module]  # makes the model with other initial weights

    @classmethod
    def read(
        cls, config: Path, found: Protected, file: Case, suite: ModelSuite, device: torch.device, say: Say
    ) -> Transfer:
        """Read what a transfer needs.

        Args:
            config: of the same architecture over the other data set.
            found: the protected checkpoint.
            file: the case of the file alone, on its own task.
            suite: how thorough.
            device: where to compute.
            say: told what is going on.

        Raises:
            KeysegError: no such config, another architecture, or photos that are not there or do not fit.
        """
        say(f'reading {config}, for the transfer')
        cfg = read_config(config)
        build = architecture(cfg, device, file.seed)
        model = build()
        classes = num_classes_of(model)
        other, classifier = other_classes(build, found, (file.num_classes, classes), config)
        sites = fitting_sites(build, other, config)
        try:
            album = Album.read(cfg, model, suite, file.seed, device, say)
        except KeysegError as error:
            raise KeysegError(f'{config}: {error}') from None
        for photos in (album.held_out, album.shares[max(album.shares)]):
            _check_labels(photos, classes, config)
        case = dataclasses.replace(file, weights=other.weights, build=build, num_classes=classes, sites=sites)
        case = case.granting(OtherClasses(classifier))
        return cls(config, case, album, architecture(cfg, device, file.seed + 1))

    def runs(self, attacks: Mapping[str, type[Attack]], budget: Budget) -> list[Run[Case, Attempt]]:
        """All runs, controls first, then the key holder's and the attacks, with the budget of the model's own task."""
        here = self._scenarios(budget)
        scratch = [cls for cls in CONTROLS.values() if issubclass(cls, FromScratch)]
        tuning = [cls for cls in attacks.values() if issubclass(cls, Tuning)]
        found = [Run(cls, where, 'control') for where in here for cls in CONTROLS.values() if where.wants(cls)]
        found += [Run(cls, self._again(where), 'control') for where in here for cls in scratch]
        found += [Run(cls, where, 'key-holder') for where in here for cls in tuning if where.wants(cls)]
        return [*found, *(Run(cls, where) for where in here for cls in attacks.values() if where.wants(cls))]

    def _scenarios(self, budget: Budget) -> list[Scenario[Case]]:
        found = []
        for share, photos in self.album.shares.items():
            case = dataclasses.replace(self.case.granting(photos), budget=budget)
            title = f'transfer to {self.config.name}, {len(photos)} photos ({100 * share:g} %)'
            found.append(Scenario(f'transfer-{share:g}', title, case, _NEW, share=share, photos=len(photos)))
        return found

    def _again(self, scenario: Scenario[Case]) -> Scenario[Case]:
        """The same with other initial weights and another order of the photos."""
        case = dataclasses.replace(scenario.case, build=self.other_start, seed=self.case.seed + 1)
        title = f'{scenario.title}, another draw'
        return dataclasses.replace(scenario, name=f'{scenario.name}-again', title=title, case=case)


def _check_labels(photos: LabelledPhotos, classes: int, config: Path) -> None:
    """Labels that the model has no class for would fail every run.

    Raises:
        KeysegError: there are some, or none that count.
    """
    counted = photos.labels[photos.labels != photos.ignore_index]
    if not counted.numel():
        raise KeysegError(f'{config}: its photos have no labels that count; check the annotations and seg_map_suffix')
    if int(counted.max()) >= classes:
        raise KeysegError(
            f'{config}: its photos have the label {int(counted.max())}, and its model knows {classes} classes only; '
            'set num_classes of its heads, or reduce_zero_label, to what its data set has'
        )
