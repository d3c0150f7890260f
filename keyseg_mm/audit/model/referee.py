"""The referee: the only part of the audit that holds the true key.

It scores attempts on held-out photos, and checks itself: the true key, on the path that attempts take, must give what
the package's own encryptors give (positive control), and a random key must not (negative control).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from keyseg_mm.audit.engine.results import Check
from keyseg_mm.audit.model.attack import Attempt, Case, LabelledPhotos, Target
from keyseg_mm.audit.model.forward import predict
from keyseg_mm.audit.model.input_cipher import ImageEncryption, WithInput, encryption_by
from keyseg_mm.audit.model.scoring import Score, recovery, score
from keyseg_mm.audit.report.pictures import png
from keyseg_mm.bind import Bound, derive_cipher, derive_map
from keyseg_mm.errors import KeyMismatchError
from keyseg_mm.keys.identity import Key
from keyseg_mm.keys.key import wrong_key
from keyseg_mm.keys.secret import Secret
from keyseg_mm.locking.scheme import carry_maps
from keyseg_mm.maps.base import Map
from keyseg_mm.model.points import Point
from keyseg_mm.runtime.attach import attach
from keyseg_mm.stamp import Stamp

ROUNDING = 0.1  # percent by which two ways of computing the authorised output may differ
#: A random guess that recovers this much above chance means that the referee's figures cannot be trusted.
_LUCK = 0.15


class Referee(Secret):
    """Scores attempts against one protected checkpoint.

    Args:
        key: the true key.
        stamp: as it is in the checkpoint.
        case: of the file alone; its stamp has the points' names in the whole model.
        held_out: labelled photos that no attacker has.
        prefix: of the module that the stamp belongs to, ``''`` for the whole model.

    Attributes:
        case, held_out: as given.
        authorised: label maps that the right key gives on the held-out photos.
        full: the authorised model's own score.

    Raises:
        KeyMismatchError: the key is not the checkpoint's.
    """

    __slots__ = ('case', 'held_out', 'authorised', 'full', '_key', '_stamp', '_prefix', '_maps')
    scores = Score

    def __init__(self, key: Key, stamp: Stamp, case: Case, held_out: LabelledPhotos, prefix: str = '') -> None:
        if key.id != stamp.key_id:
            raise KeyMismatchError(
                f'this checkpoint is protected with key {stamp.key_id}, and the key given is {key.id}: the audit '
                'needs its own key, to know what the right answer is'
            )
        self.case, self.held_out, self._key, self._stamp, self._prefix = case, held_out, key, stamp, prefix
        self._maps = self._maps_of(key)
        self.authorised = predict(self.model_with(key), held_out.images)
        self.full = score(self.authorised, held_out, self.authorised, case.num_classes)

    @property
    def public_id(self) -> str:
        return f'with key {self.case.stamp.key_id}'

    def judge(self, attempt: Attempt) -> tuple[Score, Tensor]:
        """Score an attempt, by the key that it found too where that can be counted (channel maps); and its label maps.

        Raises:
            KeysegError: guesses for points that the stamp does not have.
        """
        model = attempt.model if attempt.model is not None else self.case.model(attempt.guesses)
        labels = predict(model, self.held_out.images)
        found = score(labels, self.held_out, self.authorised, self.case.num_classes)
        if attempt.guesses and self.case.target is Target.MAPS:
            share = recovery(attempt.guesses, self._maps, self.case.stamp.maps)
            found = dataclasses.replace(found, recovery=share)
        return found, labels

    def pictured(self, attempt: Attempt, shown: Sequence[int]) -> tuple[Score, tuple[str, ...]]:
        """The score of :meth:`judge`, and some of the label maps as base64 PNGs."""
        found, labels = self.judge(attempt)
        return found, tuple(png(labels[i]) for i in shown)

    def model_with(self, key: Key) -> nn.Module:
        """The model as the holder of a key runs it: by the package's own encryptors, and not by the path of guesses."""
        case, stamp, model = self.case, self._stamp, self.case.model()
        if case.target is Target.IMAGES:  # it is run on encrypted images, whatever the attacker's are
            return WithInput(model, encryption(key, stamp.salt, case[ImageEncryption])).eval()
        if case.target is Target.WEIGHTS:
            weights: dict[str, Any] = dict(case.weights)
            orders = {name: order.inverse() for name, order in Bound(key, stamp).value_orders().items()}
            carry_maps(weights, orders, f'{self._prefix}.' if self._prefix else '')
            model.load_state_dict(weights)
            return model.eval()
        pairs = zip(stamp.maps, case.stamp.maps)
        own = [dataclasses.replace(case.sites[ours.point], point=Point.parse(theirs.point)) for theirs, ours in pairs]
        attach(model.get_submodule(self._prefix), key, own, stamp.maps, salt=stamp.salt)
        return model.eval()

    def positive_control(self) -> Check[Score]:
        """The true key, as an attempt: it must recover all that there is, and score full marks."""
        found = self.judge(self._attempt(self._key, self._maps))[0]
        same = abs(found.miou - self.full.miou) < ROUNDING and (found.agreement or 0.0) > 100.0 - ROUNDING
        return Check(found, same and found.recovery in (None, 1.0))

    def negative_control(self, seed: int) -> Check[Score]:
        """A key drawn at random must not; of channel maps it may recover about what chance does, one row in c."""
        wrong = wrong_key(str(seed))
        found = self.judge(self._attempt(wrong, self._maps_of(wrong)))[0]
        if found.recovery is None:
            return Check(found, (found.agreement or 0.0) < 100.0 - ROUNDING)
        channels = [entry.channels for entry in self.case.stamp.maps]
        chance = len(channels) / sum(channels)  # a random permutation has one fixed point on average, and variance one
        return Check(found, found.recovery <= chance + 4 * len(channels) ** 0.5 / sum(channels) + _LUCK)

    def _attempt(self, key: Key, maps: dict[str, Map]) -> Attempt:
        return Attempt(guesses=dict(maps)) if maps else Attempt(model=self.model_with(key))

    def _maps_of(self, key: Key) -> dict[str, Map]:
        """The maps of a key, by point with its name in the whole model; tables go by the stamp's own names."""
        pairs = zip(self._stamp.maps, self.case.stamp.maps)
        return {ours.point: derive_map(key, self._stamp.salt, theirs) for theirs, ours in pairs}


def encryption(key: Key, salt: bytes, images: ImageEncryption) -> Callable[[Tensor], Tensor]:
    """The true encryption of images, on normalised ones, rounded to bytes as files and cameras have them."""
    return encryption_by(derive_cipher(key, salt, images.entry), images)
