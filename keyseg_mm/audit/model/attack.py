"""What an attacker of a protected model holds: what is public of the file, and grants; and what an attack on it is.

All tensors of a case lie on one device, and ``build`` makes models on that device.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, ClassVar

from torch import Tensor, nn

from keyseg_mm.audit.engine.attack import BaseAttack, BaseAttempt, BaseCase, Grant, Registry
from keyseg_mm.audit.model.forward import Guess, load_weights, place
from keyseg_mm.entries import MapEntry
from keyseg_mm.errors import KeysegError
from keyseg_mm.maps import CHANNEL_MAPS
from keyseg_mm.maps.base import Map
from keyseg_mm.model.points import Point
from keyseg_mm.model.sites import Site
from keyseg_mm.stamp import Stamp


class Target(str, Enum):
    """What of a model is encrypted: attacks are made for some of these."""

    MAPS = 'maps'  # feature maps, by channel maps
    BLOCKS = 'blocks'  # feature maps, by block-wise transforms
    WEIGHTS = 'weights'  # the values of weights
    IMAGES = 'images'  # the images that the model takes


ALL = frozenset(Target)
IGNORED = 255  # label of pixels that do not count, as everywhere in the host


@dataclass(frozen=True)
class Photos(Grant):
    """Images as the model wants them."""

    name: ClassVar[str] = 'unlabelled'
    images: Tensor  # (N, 3, H, W) float32, after the data preprocessor (normalised, channels in the model's order)

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class LabelledPhotos(Photos):
    """Images with labels; they serve as unlabelled ones too."""

    name: ClassVar[str] = 'labelled'
    labels: Tensor  # (N, H, W) int64; IGNORED pixels do not count

    def take(self, index: Any) -> LabelledPhotos:
        """Some of them: an index tensor, list or slice."""
        return dataclasses.replace(self, images=self.images[index], labels=self.labels[index])


@dataclass(frozen=True)
class PublicWeights(Grant):
    """Public plain weights of the same architecture, by name. Names may be missing (other heads)."""

    name: ClassVar[str] = 'public'
    weights: Mapping[str, Tensor]


@dataclass(frozen=True)
class Ciphertext(Grant):
    """What a sealed file holds in place of the weights, by their names; whoever has the file has it."""

    name: ClassVar[str] = 'ciphertext'
    weights: Mapping[str, Tensor]


@dataclass(frozen=True)
class SecondFile(Grant):
    """Another customer's checkpoint, or another release: its stamp, with names of the whole model, and weights."""

    name: ClassVar[str] = 'second'
    stamp: Stamp
    weights: Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Case(BaseCase):
    """Everything that an attacker of a model holds.

    Attributes:
        stamp: public: points (by their names in the whole model), channels, transforms, salt, key id.
        weights: the protected state_dict, without the stamp.
        build: makes the plain model, with seeded initial weights, in eval mode.
        num_classes: number of classes.
        sites: by point of the stamp, what a dry run of the public model shows.
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

    def model(self, guesses: Mapping[str, Guess] | None = None) -> nn.Module:
        """The protected weights in the plain architecture, with guesses applied at their points, in eval mode.

        Args:
            guesses: by point; points without a guess run as without a key.

        Raises:
            KeysegError: a guess for a point that the stamp does not have, or weights that do not fit the architecture.
        """
        model = self.build()
        load_weights(model, self.weights)
        for point, guess in (guesses or {}).items():
            if point not in self.sites:
                raise KeysegError(f'{point}: a guess for a point that this stamp does not have')
            place(model, self.sites[point], guess)
        return model.eval()


def carriers(entry: MapEntry) -> tuple[str, ...]:
    """Names of the weights that carry a map: as the stamp says, or, at an ``in:`` point, that of its own layer."""
    point = Point.parse(entry.point)
    own = 'weight' if point.name == '.' else f'{point.name}.weight'
    return entry.weights or ((own,) if point.side == 'in' else ())


@dataclass
class Attempt(BaseAttempt):
    """What an attack came up with.

    Attributes:
        guesses: estimates of the key's maps, by point; may be empty.
        model: the attacked model, scored as it is. If None the referee scores ``case.model(guesses)``.
    """

    guesses: Mapping[str, Map] = field(default_factory=dict)
    model: nn.Module | None = None


class Attack(BaseAttack[Case, Attempt]):
    """Base of all attacks on models. A subclass's docstring says how it works.

    Attributes:
        against: what of the model is encrypted where it makes sense. Most attacks look for channel maps.
    """

    against: ClassVar[frozenset[Target]] = frozenset({Target.MAPS})

    @classmethod
    def possible(cls, case: Case) -> bool:
        return case.target in cls.against and super().possible(case)


ATTACKS: Registry[Attack] = Registry()
CONTROLS: Registry[Attack] = Registry()
register = ATTACKS.register
