"""The referee: the only part of the audit that holds the true key.

It scores attempts on held-out photos, and hands out what a scenario grants beyond files: an oracle, and of the key's
maps leaked rows and a recorded run. It checks itself: the true key, on the path that attempts take, must score full
marks (positive control), and a random key must not (negative control).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from keyseg_mm.audit.engine.budget import Progress
from keyseg_mm.audit.model.attack import Attempt, Case, LabelledPhotos, Oracle, Tuning
from keyseg_mm.audit.model.forward import logits, predict
from keyseg_mm.audit.model.scoring import Check, Score, recovery, score
from keyseg_mm.errors import KeyMismatchError
from keyseg_mm.keys.key import SecretKey, wrong_key
from keyseg_mm.keys.secret import Secret
from keyseg_mm.maps import ChannelMap
from keyseg_mm.maps.base import Map
from keyseg_mm.stamp import Stamp

ROUNDING = 0.1  # percent by which two ways of computing the authorised output may differ


@dataclass(frozen=True)
class Verdict:
    """An attempt, scored, and the label maps (N, H, W) of the held-out photos."""

    score: Score
    labels: Tensor


class Judge(Secret):
    """Scores attempts on held-out photos, and by how much of the key they found.

    Args:
        case: of the file alone; its stamp has the points' names in the whole model.
        maps: the true ones, by point; empty where other things than maps are encrypted.
        held_out: labelled photos that no attacker has.
        authorised: label maps that the right key gives on them; None where it speaks of other classes.

    Attributes:
        case: as given.
        held_out: the photos.
        authorised: the label maps.
    """

    __slots__ = ('case', 'held_out', 'authorised', '_maps')

    def __init__(
        self, case: Case, maps: Mapping[str, Map], held_out: LabelledPhotos, authorised: Tensor | None
    ) -> None:
        self.case, self._maps, self.held_out, self.authorised = case, dict(maps), held_out, authorised

    @property
    def public_id(self) -> str:
        return f'with key {self.case.stamp.key_id}'

    def judge(self, attempt: Attempt, case: Case | None = None) -> Verdict:
        """Score an attempt.

        Args:
            attempt: what an attack or control handed in.
            case: the case it worked on; by default that of the file alone, whose weights are the same.

        Raises:
            KeysegError: guesses for points that the stamp does not have.
        """
        case = case or self.case
        model = attempt.model if attempt.model is not None else case.model(attempt.guesses)
        labels = predict(model, self.held_out.images)
        mapped = bool(self._maps) and all(isinstance(true, ChannelMap) for true in self._maps.values())
        counted = mapped and bool(attempt.guesses)
        found = score(labels, self.held_out, self.authorised, case.num_classes)
        if counted:
            share, by_point = recovery(attempt.guesses, self._maps, case.stamp.maps)
            found = dataclasses.replace(found, recovery=share, by_point=by_point)
        return Verdict(dataclasses.replace(found, images_used=int(attempt.images_used)), labels)

    def with_key(self, attack: type[Tuning], case: Case, progress: Progress) -> Attempt:
        """What the key's holder gets out of a case: the same training with the true maps in their places."""
        return attack().tune(case.model(self._maps), case, progress)


class Referee(Judge):
    """Scores attempts against one protected checkpoint, by what models say.

    The positive control puts the true key's model through the path of attempts; the negative one a random key's.

    Args:
        key: the true key.
        stamp: as it is in the checkpoint.
        case: of the file alone; its stamp has the points' names in the whole model.
        held_out: labelled photos that no attacker has.
        prefix: of the module that the stamp belongs to, ``''`` for the whole model.

    Attributes:
        full: the authorised model's own score.

    Raises:
        KeyMismatchError: the key is not the checkpoint's.
    """

    __slots__ = ('full', '_key', '_stamp', '_prefix')
    authorised: Tensor

    def __init__(self, key: SecretKey, stamp: Stamp, case: Case, held_out: LabelledPhotos, prefix: str = '') -> None:
        if key.id != stamp.key_id:
            raise KeyMismatchError(
                f'this checkpoint is protected with key {stamp.key_id}, and the key given is {key.id}: the audit '
                'needs its own key, to know what the right answer is'
            )
        self.case, self._key, self._stamp, self._prefix = case, key, stamp, prefix
        authorised = predict(self.model_with(key), held_out.images)
        super().__init__(case, self._maps_of(key), held_out, authorised)
        self.full = score(authorised, held_out, authorised, case.num_classes)

    def model_with(self, key: SecretKey) -> nn.Module:
        """The model as the holder of a key runs it."""
        raise NotImplementedError

    def positive_control(self) -> Check:
        """The true key must score full marks on the path that attempts take."""
        found = self.judge(Attempt(model=self.model_with(self._key))).score
        return Check(found, found.agreement == 100.0)

    def negative_control(self, seed: int) -> Check:
        """A key drawn at random must not do what the right one does."""
        found = self.judge(Attempt(model=self.model_with(wrong_key(str(seed))))).score
        return Check(found, (found.agreement or 0.0) < 100.0 - ROUNDING)

    def oracle(self) -> Oracle:
        """An authorised model behind a wall: images in, scores out."""
        model = self.model_with(self._key)

        def answer(images: Tensor) -> Tensor:
            with torch.no_grad():
                return logits(model, images)

        return Oracle(answer)

    def _maps_of(self, key: SecretKey) -> dict[str, Map]:
        """The maps of a key, by point with its name in the whole model."""
        return {}
