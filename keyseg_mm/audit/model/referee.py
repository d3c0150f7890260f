"""The referee: the only part of the audit that holds the true key.

It scores attempts on held-out photos, and hands out what a situation grants of the key: leaked rows, a recorded run, an
oracle. It checks itself: the true key's maps, handed in as guesses are, must score full marks (positive control), and a
random guess must recover no more of the key than chance does (negative control). In another task than the model's own
it scores as :class:`Elsewhere`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from keyseg_mm.audit.engine.attack import Attempt, Progress
from keyseg_mm.audit.model.attacks.finetuning import FineTuning
from keyseg_mm.audit.model.case import Case, GuessHook, Photos, logits
from keyseg_mm.audit.model.scoring import Recovery, Score, predict, recovery, score
from keyseg_mm.bind import derive_map
from keyseg_mm.entries import Entry, MapEntry, TensorEntry
from keyseg_mm.errors import KeyMismatchError
from keyseg_mm.keys.key import SecretKey, wrong_key
from keyseg_mm.keys.secret import Secret
from keyseg_mm.maps import ChannelMap, Map
from keyseg_mm.model.points import Point
from keyseg_mm.model.sites import Site
from keyseg_mm.runtime.attach import attach
from keyseg_mm.stamp import Stamp

#: A random guess that recovers this much above chance means that the referee's figures cannot be trusted.
_LUCK = 0.15
_ROUNDING = 0.1  # percent by which two ways of computing the authorised output may differ
_SAME = 1e-3  # relative difference of two maps that are the same but for rounding


@dataclass(frozen=True)
class Verdict:
    """An attempt, scored.

    Attributes:
        score: of its model.
        recovery: of its guesses; None where it made none.
        labels: (N, H, W) of the held-out photos.
    """

    score: Score
    recovery: Recovery | None
    labels: Tensor


class Judge(Secret):
    """Scores attempts on held-out photos, and by how much of the key they found.

    Args:
        plan: with the points' names in the whole model.
        maps: the true ones, by point.
        held_out: labelled photos that no attacker has.
        num_classes: number of classes in them.
        authorised: label maps that the right key gives on them; None where it speaks of other classes.

    Attributes:
        held_out: the photos.
        authorised: the label maps.
    """

    __slots__ = ('held_out', 'authorised', '_plan', '_maps', '_mapped', '_num_classes')

    def __init__(
        self,
        plan: Stamp,
        maps: Mapping[str, Map],
        held_out: Photos,
        num_classes: int,
        authorised: Tensor | None,
    ) -> None:
        self.held_out, self.authorised = held_out, authorised
        self._plan, self._maps, self._num_classes = plan, dict(maps), num_classes
        self._mapped = bool(maps) and all(isinstance(cmap, ChannelMap) for cmap in maps.values())

    @property
    def public_id(self) -> str:
        return f'with key {self._plan.key_id}'

    def judge(self, attempt: Attempt, case: Case) -> Verdict:
        """Score an attempt.

        Args:
            attempt: what an attack or control handed in.
            case: the case it worked on.

        Raises:
            KeysegError: guesses for points that the plan does not have.
        """
        model = attempt.model if attempt.model is not None else case.model(attempt.guesses)
        labels = predict(model, self.held_out.images)
        told = attempt.guesses and self._mapped
        found = recovery(attempt.guesses, self._maps, self._plan.maps) if told else None
        return Verdict(score(labels, self.held_out, self.authorised, self._num_classes), found, labels)

    def with_key(self, attack: type[FineTuning], case: Case, progress: Progress) -> Attempt:
        """What the key's holder gets out of a case: the same training with the true maps in their places."""
        return attack().tune(case.model(self._maps), case, progress)


class Elsewhere(Judge):
    """Scores what becomes of a protected file on another data set, where the authorised model speaks of other classes.

    Args:
        referee: of the file.
        case: of the file and the other data set.
        held_out: labelled photos of that.
    """

    __slots__ = ('case', '_own')

    def __init__(self, referee: Referee, case: Case, held_out: Photos) -> None:
        super().__init__(case.plan, referee._maps, held_out, case.num_classes, None)
        self.case, self._own = case, referee.case

    def positive_control(self) -> dict[str, Any]:
        """The true key in the other model must give, at every point, the maps that it gives in the authorised one.

        Points that the classifier has a part in (cascades feed one head's answer to the next) are left out.
        """
        images = self.held_out.images[:1]
        classifier = self.case.classifier or ()
        flipped = {n: -v if n in classifier else v for n, v in self.case.weights.items()}
        right, here = (_recorded(case, self._maps, images) for case in (self._own, self.case))
        other = _recorded(dataclasses.replace(self.case, weights=flipped), self._maps, images)
        counted = [point for point in here if point in right and _error(here[point], other[point]) < _SAME]
        worst = max((_error(here[point], right[point]) for point in counted), default=0.0)
        return {'points': len(counted), 'error': worst, 'passed': bool(counted) and worst < _SAME}


class Referee(Judge):
    """Scores attempts against one protected checkpoint.

    Args:
        key: the true key.
        stamp: the plan as the checkpoint's stamp has it.
        case: of the file alone; its plan has the points' names in the whole model.
        held_out: labelled photos that no attacker has.
        prefix: of the module that the stamp belongs to, ``''`` for the whole model.

    Attributes:
        case: of the file alone.
        held_out: the photos.
        authorised: label maps that the right key gives on them.
        full: the authorised model's own score.

    Raises:
        KeyMismatchError: the key is not the checkpoint's.
    """

    __slots__ = ('case', 'full', '_key', '_stamp', '_prefix')
    authorised: Tensor

    def __init__(self, key: SecretKey, stamp: Stamp, case: Case, held_out: Photos, prefix: str = '') -> None:
        if key.id != stamp.key_id:
            raise KeyMismatchError(
                f'this checkpoint is protected with key {stamp.key_id}, and the key given is {key.id}: the audit '
                'needs its own key, to know what the right answer is'
            )
        pairs = zip(stamp.maps, case.plan.maps)
        maps = {ours.point: derive_map(key, stamp.salt, theirs) for theirs, ours in pairs}
        self.case, self._key, self._stamp, self._prefix, self._maps = case, key, stamp, prefix, maps
        authorised = predict(self._authorised_model(), held_out.images)
        super().__init__(case.plan, maps, held_out, case.num_classes, authorised)
        self.full = score(authorised, held_out, authorised, case.num_classes)

    def judge(self, attempt: Attempt, case: Case | None = None) -> Verdict:
        """Score an attempt; the case it worked on may be left out, as the weights of all of them are the same."""
        return super().judge(attempt, case or self.case)

    def positive_control(self) -> dict[str, Any]:
        """The true key, on both paths that attempts take: as guesses, and as a model.

        Both must recover all that there is, and give what the package's own encryptors give.
        """
        guessed = self.judge(Attempt(guesses=dict(self._maps)))
        ready = self.judge(Attempt(model=self.case.model(self._maps)))
        found_all = guessed.recovery.mean if guessed.recovery else None
        passed = found_all in (1.0, None)
        for found in (guessed.score, ready.score):
            passed &= abs(found.miou - self.full.miou) < _ROUNDING and (found.agreement or 0.0) > 100.0 - _ROUNDING
        return {**guessed.score.as_dict(), 'recovery': found_all, 'passed': passed}

    def negative_control(self, seed: int) -> dict[str, Any]:
        """Maps of a key drawn at random: they must recover about as much as chance does, one row in c."""
        stranger = wrong_key(str(seed))
        maps = {e.point: derive_map(stranger, self._stamp.salt, e) for e in self.case.plan.maps}
        verdict = self.judge(Attempt(guesses=maps))
        if verdict.recovery is None:
            return told_apart(verdict)
        entries = self.case.plan.maps
        rows = sum(e.channels for e in entries)
        chance = len(entries) / rows  # a random permutation has one fixed point on average, and a variance of one
        passed = verdict.recovery.mean <= chance + 4 * len(entries) ** 0.5 / rows + _LUCK
        return {**verdict.score.as_dict(), 'recovery': verdict.recovery.mean, 'chance': chance, 'passed': passed}

    def leak(self, share: float, seed: int) -> tuple[dict[str, NDArray[np.bool_]], dict[str, NDArray[np.float64]]]:
        """A share of each point's rows of the key: masks (c,) and matrices (c, c) with the other rows zero."""
        draw = np.random.default_rng(seed)
        masks, tables = {}, {}
        for point, cmap in self._maps.items():
            assert isinstance(cmap, ChannelMap)
            mask = np.zeros(cmap.channels, dtype=np.bool_)
            mask[draw.permutation(cmap.channels)[: round(share * cmap.channels)]] = True
            masks[point] = mask
            tables[point] = np.where(mask[:, None], cmap.matrix().numpy(), 0.0)
        return masks, tables

    def record(self, images: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """What enters and leaves every encryptor when the authorised model sees some images."""
        return _recorded(self.case, self._maps, images)

    def oracle(self) -> Callable[[Tensor], Tensor]:
        """An authorised model behind a wall: images in, scores out."""
        model = self.case.model(self._maps)

        def answer(images: Tensor) -> Tensor:
            with torch.no_grad():
                return logits(model, images)

        return answer

    def _authorised_model(self) -> nn.Module:
        """The model as its user runs it, by the package's own encryptors and not by the path that guesses take."""
        model = self.case.model()
        owner = model.get_submodule(self._prefix) if self._prefix else model
        entries, sites = self._stamp.maps, self.case.sites
        if sites is None:
            return self.case.model(self._maps)
        own = [_named(sites[ours.point], theirs) for theirs, ours in zip(entries, self.case.plan.maps)]
        attach(owner, self._key, own, entries, salt=self._stamp.salt)
        return model.eval()


def told_apart(verdict: Verdict) -> dict[str, Any]:
    """The negative control where no rows of a key can be counted: a wrong key must not do what the right one does."""
    passed = (verdict.score.agreement or 0.0) < 100.0 - _ROUNDING
    return {**verdict.score.as_dict(), 'recovery': None, 'chance': None, 'passed': passed}


def whole_model_plan(stamp: Stamp, prefix: str) -> Stamp:
    """A stamp with its points, and what else names modules, renamed from a module's view to the whole model's."""
    if not prefix:
        return stamp
    return dataclasses.replace(stamp, entries=tuple(_renamed(entry, prefix) for entry in stamp.entries))


def _renamed(entry: Entry, prefix: str) -> Entry:
    if isinstance(entry, TensorEntry):
        return dataclasses.replace(entry, names=tuple(f'{prefix}.{name}' for name in entry.names))
    if not isinstance(entry, MapEntry):
        return entry
    point = Point.parse(entry.point)
    name = prefix if point.name == '.' else f'{prefix}.{point.name}'
    weights = tuple(f'{prefix}.{weight}' for weight in entry.weights)
    return dataclasses.replace(entry, point=str(dataclasses.replace(point, name=name)), weights=weights)


def _named(site: Site, entry: MapEntry) -> Site:
    return dataclasses.replace(site, point=Point.parse(entry.point))


def _recorded(case: Case, maps: Mapping[str, Map], images: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    model = case.model()
    for point, cmap in maps.items():
        _hook(model, case, point, _recorder(point, cmap, seen))
    with torch.no_grad():
        logits(model, images)
    return seen


def _error(ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor]) -> float:
    """The larger relative difference of what entered, and of what left, a point."""
    if any(a.shape != b.shape for a, b in zip(ours, theirs)):
        return math.inf
    return max(float((a - b).norm() / b.norm().clamp_min(1e-12)) for a, b in zip(ours, theirs))


def _hook(model: nn.Module, case: Case, point: str, guess: Callable[[Tensor, int], Tensor]) -> None:
    sites: Mapping[str, Site] = case.sites or {}
    GuessHook(Point.parse(point), guess, sites.get(point)).attach(model)


def _recorder(point: str, cmap: Map, seen: dict[str, tuple[Tensor, Tensor]]) -> Callable[[Tensor, int], Tensor]:
    def pass_on(x: Tensor, dim: int) -> Tensor:
        y = cmap(x, dim)
        seen.setdefault(point, (x.detach().clone(), y.detach().clone()))
        return y

    return pass_on
