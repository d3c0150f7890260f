"""A referee for each thing that may be encrypted, and one for what becomes of a file in another task."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from keyseg_mm.audit.model.attack import Attempt, Case, LabelledPhotos, LeakedRows, OtherClasses, Recording, Target
from keyseg_mm.audit.model.forward import GuessHook, logits
from keyseg_mm.audit.model.input_cipher import ImageEncryption, WithInput, encryption_by
from keyseg_mm.audit.model.referee import ROUNDING, Judge, Referee
from keyseg_mm.audit.model.scoring import Check
from keyseg_mm.bind import Bound, derive_cipher, derive_map
from keyseg_mm.keys.key import SecretKey, wrong_key
from keyseg_mm.locking.scheme import carry_maps
from keyseg_mm.maps import ChannelMap
from keyseg_mm.maps.base import Map
from keyseg_mm.model.points import Point
from keyseg_mm.runtime.attach import attach
from keyseg_mm.stamp import Stamp

#: A random guess that recovers this much above chance means that the referee's figures cannot be trusted.
_LUCK = 0.15
_SAME = 1e-3  # relative difference of two maps that are the same but for rounding


class MapReferee(Referee):
    """For encrypted feature maps: it also counts the rows of the key that guesses get right, and hands some out."""

    __slots__ = ()

    def model_with(self, key: SecretKey) -> nn.Module:
        """By the package's own encryptors, and not by the path that guesses take."""
        sites, entries = self.case.sites, self._stamp.maps
        if not sites:
            return self.case.model(self._maps_of(key))
        model = self.case.model()
        pairs = zip(entries, self.case.stamp.maps)
        own = [dataclasses.replace(sites[ours.point], point=Point.parse(theirs.point)) for theirs, ours in pairs]
        attach(model.get_submodule(self._prefix), key, own, entries, salt=self._stamp.salt)
        return model.eval()

    def positive_control(self) -> Check:
        """The true key, on both paths that attempts take: as guesses, and as a model.

        Both must recover all that there is, and give what the package's own encryptors give.
        """
        guessed = self.judge(Attempt(guesses=dict(self._maps))).score
        ready = self.judge(Attempt(model=self.case.model(self._maps))).score
        passed = guessed.recovery in (None, 1.0)
        for found in (guessed, ready):
            passed &= abs(found.miou - self.full.miou) < ROUNDING and (found.agreement or 0.0) > 100.0 - ROUNDING
        return Check(guessed, passed)

    def negative_control(self, seed: int) -> Check:
        """Maps of a key drawn at random: they must recover about as much as chance does, one row in c."""
        found = self.judge(Attempt(guesses=self._maps_of(wrong_key(str(seed))))).score
        if found.recovery is None:
            return Check(found, (found.agreement or 0.0) < 100.0 - ROUNDING)
        entries = self.case.stamp.maps
        rows = sum(e.channels for e in entries)
        chance = len(entries) / rows  # a random permutation has one fixed point on average, and a variance of one
        return Check(found, found.recovery <= chance + 4 * len(entries) ** 0.5 / rows + _LUCK, chance)

    @property
    def counts_rows(self) -> bool:
        """Whether the key is made of rows: block-wise transforms have none."""
        return self.case.target is Target.MAPS

    def leak(self, share: float, seed: int) -> LeakedRows:
        """A share of each point's rows of the key."""
        draw = np.random.default_rng(seed)
        masks, tables = {}, {}
        for point, true in self._maps.items():
            if isinstance(true, ChannelMap):
                mask = np.zeros(true.channels, dtype=np.bool_)
                mask[draw.permutation(true.channels)[: round(share * true.channels)]] = True
                masks[point], tables[point] = mask, np.where(mask[:, None], true.matrix().numpy(), 0.0)
        return LeakedRows(masks, tables)

    def record(self, images: Tensor) -> Recording:
        """What enters and leaves every encryptor when the authorised model sees some images."""
        return Recording(_recorded(self.case, self._maps, images))

    def _maps_of(self, key: SecretKey) -> dict[str, Map]:
        pairs = zip(self._stamp.maps, self.case.stamp.maps)  # tables go by the stamp's own names
        return {ours.point: derive_map(key, self._stamp.salt, theirs) for theirs, ours in pairs}


class WeightReferee(Referee):
    """For encrypted weights: they are unlocked with the key."""

    __slots__ = ()

    def model_with(self, key: SecretKey) -> nn.Module:
        weights: dict[str, Any] = dict(self.case.weights)
        maps = {name: order.inverse() for name, order in Bound(key, self._stamp).value_orders().items()}
        carry_maps(weights, maps, f'{self._prefix}.' if self._prefix else '')
        model = self.case.build()
        model.load_state_dict(weights)
        return model.eval()


class InputReferee(Referee):
    """For encrypted images: the model is run on images encrypted with the key, whatever the attacker's are."""

    __slots__ = ()

    def model_with(self, key: SecretKey) -> nn.Module:
        return WithInput(self.case.model(), encryption(key, self._stamp.salt, self.case[ImageEncryption])).eval()


_REFEREES: Mapping[Target, type[Referee]] = {
    Target.MAPS: MapReferee,
    Target.BLOCKS: MapReferee,
    Target.WEIGHTS: WeightReferee,
    Target.IMAGES: InputReferee,
}


def referee_for(key: SecretKey, stamp: Stamp, case: Case, held_out: LabelledPhotos, prefix: str = '') -> Referee:
    """The referee for what is encrypted in a case; arguments and errors as of :class:`Referee`."""
    return _REFEREES[case.target](key, stamp, case, held_out, prefix)


@dataclass(frozen=True)
class TransferCheck:
    """Whether the true key does in another model what it does in the authorised one."""

    points: int  # that were compared
    error: float  # the largest relative difference at one of them; infinite where shapes differ
    passed: bool  # it is rounding


class TransferReferee(Judge):
    """Scores what becomes of a protected file on another data set, where the authorised model speaks of other classes.

    Args:
        referee: of the file.
        case: of the file and the other data set.
        held_out: labelled photos of that.
    """

    __slots__ = ('_own',)

    def __init__(self, referee: Referee, case: Case, held_out: LabelledPhotos) -> None:
        super().__init__(case, referee._maps, held_out, None)
        self._own = referee.case

    def positive_control(self) -> TransferCheck:
        """The true key in the other model must give, at every point, the maps that it gives in the authorised one.

        Points that the classifier has a part in (cascades feed one head's answer to the next) are left out.
        """
        images = self.held_out.images[:1]
        names = self.case[OtherClasses].classifier
        flipped = {n: -v if n in names else v for n, v in self.case.weights.items()}
        right, here = (_recorded(case, self._maps, images) for case in (self._own, self.case))
        other = _recorded(dataclasses.replace(self.case, weights=flipped), self._maps, images)
        counted = [point for point in here if point in right and _error(here[point], other[point]) < _SAME]
        worst = max((_error(here[point], right[point]) for point in counted), default=0.0)
        return TransferCheck(len(counted), worst, bool(counted) and worst < _SAME)


def encryption(key: SecretKey, salt: bytes, images: ImageEncryption) -> Callable[[Tensor], Tensor]:
    """The true encryption of images, on normalised ones, rounded to bytes as files and cameras have them."""
    return encryption_by(derive_cipher(key, salt, images.entry), images)


def _recorded(case: Case, maps: Mapping[str, Map], images: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """By point, what enters and leaves each map when a case's model sees some images."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    model = case.model()
    for point, true in maps.items():
        GuessHook(Point.parse(point), _recorder(point, true, seen), case.sites.get(point)).attach(model)
    with torch.no_grad():
        logits(model, images)
    return seen


def _recorder(point: str, true: Map, seen: dict[str, tuple[Tensor, Tensor]]) -> Callable[[Tensor, int], Tensor]:
    def pass_on(x: Tensor, dim: int) -> Tensor:
        y: Tensor = true(x, dim)
        seen.setdefault(point, (x.detach().clone(), y.detach().clone()))
        return y

    return pass_on


def _error(ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor]) -> float:
    """The larger relative difference of what entered, and of what left, a point."""
    if any(a.shape != b.shape for a, b in zip(ours, theirs)):
        return math.inf
    return max(float((a - b).norm() / b.norm().clamp_min(1e-12)) for a, b in zip(ours, theirs))
