"""The points of a stamp as an attacker sees them: which kind of map stands there, and how a guess at it is made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keyseg_mm.audit.engine.attack import Progress
from keyseg_mm.audit.model.attack import Attack, Attempt, Case, register
from keyseg_mm.entries import MapEntry
from keyseg_mm.maps import ChannelMap, ChannelPermutation, ChannelRotation, SignedChannelPermutation
from keyseg_mm.maps.channels import DEFAULT_BLOCK
from keyseg_mm.maps.matching import assign

Matrix = NDArray[np.float64]  # (c, c): a guess T by ``T(x) = M @ x``
Guesses = dict[str, ChannelMap]  # by the text of the point


@dataclass(frozen=True)
class AttackedPoint:
    """One point of a stamp, by its entry there."""

    entry: MapEntry

    @property
    def signed(self) -> bool:
        """Whether channels may be negated."""
        return bool(self.entry.transform['type'] == SignedChannelPermutation.__name__)

    @property
    def turned(self) -> bool:
        """Whether blocks of channels are turned, so that there is no order to be found."""
        return bool(self.entry.transform['type'] == ChannelRotation.__name__)

    def blocks(self) -> list[slice]:
        """The runs of channels that a map mixes: a rotation's blocks, a grouped layer's groups, or all in one."""
        groups = int(self.entry.transform.get('groups', 1))
        size = int(self.entry.transform.get('block', DEFAULT_BLOCK)) if self.turned else self.entry.channels // groups
        return [slice(at, min(at + size, self.entry.channels)) for at in range(0, self.entry.channels, size)]

    def random(self, rng: np.random.Generator) -> ChannelMap:
        """A random map of this kind."""
        c = self.entry.channels
        if self.turned:
            return self.round(rng.standard_normal((c, c)))
        signs = rng.choice([-1.0, 1.0], c)
        return self.round(np.eye(c)[rng.permutation(c)] * (signs if self.signed else 1.0))

    def round(self, matrix: NDArray[Any]) -> ChannelMap:
        """The map of this kind that is nearest to a matrix: the one with the largest sum of products with it."""
        if self.turned:
            blocks = [polar(matrix[b, b]) for b in self.blocks()]  # the last of which may be smaller
            full = [block for block in blocks if len(block) == len(blocks[0])]
            return ChannelRotation(np.stack(full), np.empty((0, 0)) if len(full) == len(blocks) else blocks[-1])
        score = np.abs(matrix) if self.signed else matrix
        table = np.concatenate([b.start + assign(score[b, b]) for b in self.blocks()])
        if not self.signed:
            return ChannelPermutation(table)
        negated = matrix[np.arange(len(table)), table] < 0
        return SignedChannelPermutation(table, np.where(negated, -1, 1).astype(np.int8))


def points_of(case: Case) -> list[AttackedPoint]:
    """The points of the case's stamp, in its order."""
    return [AttackedPoint(entry) for entry in case.stamp.maps]


def polar(matrix: NDArray[Any]) -> Matrix:
    """The orthogonal matrix nearest to a matrix (Schoenemann 1966)."""
    u, _, v = np.linalg.svd(np.nan_to_num(np.asarray(matrix, dtype=np.float64)))
    return np.asarray(u @ v, dtype=np.float64)


def array_of(guess: ChannelMap) -> Matrix:
    """A guess as a (c, c) float64 array."""
    return np.asarray(guess.matrix().numpy(), dtype=np.float64)


@register
class RandomKeys(Attack):
    """Draw a key at random: what it gives is the floor of every recovery."""

    name, title = 'random-keys', 'a random key'
    source = 'every paper on access control; Ito et al., arXiv 2206.05422'
    cost = 'nothing'

    def run(self, case: Case, progress: Progress) -> Attempt:
        rng = np.random.default_rng(case.seed)
        return Attempt({point.entry.point: point.random(rng) for point in points_of(case)})
