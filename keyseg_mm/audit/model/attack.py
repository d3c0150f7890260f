"""What an attacker of a protected model holds: what is public of the file, and grants; and what an attack on it is.

All tensors of a case lie on one device, and ``build`` makes models on that device.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from keyseg_mm.audit.engine.attack import BaseAttack, BaseAttempt, BaseCase, Grant, Registry
from keyseg_mm.audit.engine.budget import Progress
from keyseg_mm.audit.model.forward import GuessHook, load_weights
from keyseg_mm.errors import KeysegError
from keyseg_mm.maps import CHANNEL_MAPS
from keyseg_mm.maps.base import Map
from keyseg_mm.model.points import Point
from keyseg_mm.model.sites import Site
from keyseg_mm.stamp import Stamp


class Target(str, Enum):
    """What of a model is encrypted: attacks are made for some of these, and each has a referee of its own."""

    MAPS = 'maps'  # feature maps, by channel maps
    BLOCKS = 'blocks'  # feature maps, by block-wise transforms
    WEIGHTS = 'weights'  # the values of weights
    IMAGES = 'images'  # the images that the model takes


ALL = frozenset(Target)


@dataclass(frozen=True)
class Photos(Grant):
    """Images as the model wants them.

    Attributes:
        images: (N, 3, H, W) float32, after the data preprocessor (normalised, channels in the model's order).
    """

    name: ClassVar[str] = 'unlabelled'
    images: Tensor

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class LabelledPhotos(Photos):
    """Images with labels; they serve as unlabelled ones too.

    Attributes:
        labels: (N, H, W) int64.
        ignore_index: label of pixels that do not count.
    """

    name: ClassVar[str] = 'labelled'
    labels: Tensor
    ignore_index: int = 255

    def take(self, index: Any) -> LabelledPhotos:
        """Some of them: an index tensor, list or slice."""
        return dataclasses.replace(self, images=self.images[index], labels=self.labels[index])

    def unlabelled(self) -> Photos:
        """The same images without their labels."""
        return Photos(self.images)


@dataclass(frozen=True)
class PublicWeights(Grant):
    """Public plain weights of the same architecture, by name. Names may be missing (other heads)."""

    name: ClassVar[str] = 'public'
    weights: Mapping[str, Tensor]


@dataclass(frozen=True)
class SecondFile(Grant):
    """Another customer's checkpoint, or another release: its stamp, with names of the whole model, and weights."""

    name: ClassVar[str] = 'second'
    stamp: Stamp
    weights: Mapping[str, Tensor]


@dataclass(frozen=True)
class OtherClasses(Grant):
    """The attacker's classes are not those of the file; the weights that belong to classes, by name, always learn."""

    name: ClassVar[str] = 'classifier'
    classifier: tuple[str, ...]


@dataclass(frozen=True)
class LeakedRows(Grant):
    """Part of the key.

    Attributes:
        known: by point, boolean mask (c,) of the rows of the key's matrix that leaked.
        tables: by point, the key's matrix (c, c) with ``T(x) = M @ x``: the leaked rows right, the others zero. For a
            permutation, row i has its 1 at ``table[i]``.
    """

    name: ClassVar[str] = 'known'
    beyond_files: ClassVar[bool] = True
    known: Mapping[str, NDArray[np.bool_]]
    tables: Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Recording(Grant):
    """By point, what entered and what left the encryptor in one authorised run."""

    name: ClassVar[str] = 'recorded'
    beyond_files: ClassVar[bool] = True
    pairs: Mapping[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Oracle(Grant):
    """An authorised model as a black box: images (B, 3, H, W) to logits (B, classes, H, W)."""

    name: ClassVar[str] = 'oracle'
    beyond_files: ClassVar[bool] = True
    black_box: ClassVar[bool] = True
    answer: Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Case(BaseCase):
    """Everything that an attacker of a model holds.

    Attributes:
        stamp: public: points (by their names in the whole model), channels, transforms, salt, key id.
        weights: the protected state_dict, without the stamp.
        build: makes the plain model, with seeded initial weights, in eval mode.
        num_classes: number of classes.
        sites: by point, what a dry run of the public model shows; empty where nobody looked.
    """

    stamp: Stamp
    weights: Mapping[str, Tensor]
    build: Callable[[], nn.Module]
    num_classes: int
    sites: Mapping[str, Site] = field(default_factory=dict)

    @property
    def target(self) -> Target:
        """What is encrypted."""
        if not self.stamp.maps and (self.stamp.embeddings or self.stamp.images):
            return Target.IMAGES
        if self.stamp.tensors:
            return Target.WEIGHTS
        mapped = all(entry.transform['type'] in CHANNEL_MAPS for entry in self.stamp.maps)
        return Target.MAPS if mapped else Target.BLOCKS

    @property
    def classifier(self) -> tuple[str, ...]:
        """Names of the weights that belong to the attacker's own classes; empty where the classes are the file's."""
        return self[OtherClasses].classifier if OtherClasses in self else ()

    def model(self, guesses: Mapping[str, Map] | None = None) -> nn.Module:
        """The protected weights in the plain architecture, with guesses applied at their points, in eval mode.

        Args:
            guesses: by point; points without a guess run as without a key.

        Raises:
            KeysegError: a guess for a point that the stamp does not have, or weights that do not fit the architecture.
        """
        model = self.build()
        load_weights(model, self.weights)
        points = {entry.point for entry in self.stamp.maps}
        for text, guess in (guesses or {}).items():
            if text not in points:
                raise KeysegError(f'{text}: a guess for a point that this stamp does not have')
            GuessHook(Point.parse(text), guess, self.sites.get(text)).attach(model)
        return model.eval()


@dataclass
class Attempt(BaseAttempt):
    """What an attack came up with.

    Attributes:
        guesses: estimates of the key's maps, by point; may be empty.
        model: the attacked model, scored as it is. If None the referee scores ``case.model(guesses)``.
        images_used: photos that were looked at, labelled or not.
    """

    guesses: Mapping[str, Map] = field(default_factory=dict)
    model: nn.Module | None = None
    images_used: int = 0


class Attack(BaseAttack[Case, Attempt]):
    """Base of all attacks on models. A subclass's docstring says how it works.

    Attributes:
        against: what of the model is encrypted where it makes sense. Most attacks look for channel maps.
        transfers: it makes sense where the attacker's classes are not the file's: it trains what belongs to them.
    """

    against: ClassVar[frozenset[Target]] = frozenset({Target.MAPS})
    transfers: ClassVar[bool] = False

    @classmethod
    def possible(cls, case: Case) -> bool:
        fits = case.target in cls.against and (cls.transfers or OtherClasses not in case)
        return fits and super().possible(case)


class Tuning(Attack):
    """An attack that trains a model made from the case's weights, as the key's holder can with the true maps on."""

    def tune(self, model: nn.Module, case: Case, progress: Progress) -> Attempt:
        """Train a model of the case: the attacker's, or the key holder's."""
        raise NotImplementedError

    def run(self, case: Case, progress: Progress) -> Attempt:
        return self.tune(case.model(), case, progress)


ATTACKS: Registry[Attack] = Registry()
CONTROLS: Registry[Attack] = Registry()
register = ATTACKS.register
