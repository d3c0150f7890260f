"""Whose pattern is in the evidence? A z-score for each name, and the probability that chance gave one as large.

For a name that was no part of the file, z is a sum of independent signs, weighted to a variance of 1. So it is at least
t with a probability of at most exp(-t^2 / 2), whatever the file is (Hoeffding 1963), and one of N names is with at most
N times that (Bonferroni). Nothing is assumed of a distribution, nor of how the file came to be.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from keyseg_mm.keys.fingerprint import MEAN, STD, STEP, Pattern
from keyseg_mm.keys.key import SecretKey
from keyseg_mm.threads import in_threads
from keyseg_mm.tracing.evidence import Evidence

#: A chance above this accuses nobody.
CERTAIN = 1e-6
_VALUES = 2 * 10**9  # of patterns that one stage makes: seconds
_TENSORS = 250_000  # patterns that one stage begins
_KEEP = 8  # one of so many names goes to the next stage
_BLOCK = 2**17

Progress = Callable[[float], None]


@dataclass(frozen=True)
class Score:
    """What the evidence says of one name.

    Attributes:
        name: the licensee.
        z: 0 by chance, with a standard deviation of 1.
        log10_chance: of the probability that chance gives any of the names asked about such a z; 0 for names that were
            dropped before the last stage.
        values: how many weights were looked at; of names that the first ones speak against, not all.
    """

    name: str
    z: float
    log10_chance: float
    values: int

    @property
    def is_certain(self) -> bool:
        return self.log10_chance <= math.log10(CERTAIN)


def search(
    evidence: Sequence[Evidence],
    master: SecretKey,
    model: bytes,
    names: Sequence[str],
    progress: Progress = lambda done: None,
) -> list[Score]:
    """The names' scores, the largest first.

    All names are asked with the part of the evidence that tells most, and those that it speaks for with more of it: a
    name whose z is in the first eighth goes on. Only the last stage accuses: its evidence does not hang on who is
    asked, where the stage at which a name is dropped hangs on its z.

    Args:
        evidence: of the found file.
        master: the master key.
        model: digest of the original; see :func:`keyseg_mm.tracing.marking.model_of`.
        names: of licensees.
        progress: is told which share is done.
    """
    scores: dict[str, Score] = {}
    everything, asked = sum(len(one.values) for one in evidence), list(names)
    stages = _stages(len(asked), everything)
    for at, (count, most) in enumerate(stages):
        asked = sorted(asked, key=lambda name: -scores[name].z if name in scores else 0.0)[:count]
        part = Part.of(_choose(evidence, most, max(1, _TENSORS // count)))
        values = sum(len(one.values) for one in part.evidence)

        def ask(name: str, part: Part = part, values: int = values, is_last: bool = at == len(stages) - 1) -> Score:
            z = part.z(master, model, name)
            return Score(name, z, log10_chance(z, len(names)) if is_last else 0.0, values)

        for start in range(0, count, 64):
            found = in_threads(ask, asked[start : start + 64])
            scores.update((score.name, score) for score in found)
            progress((at + (start + len(found)) / count) / len(stages))
    return sorted(scores.values(), key=lambda score: -score.z)


def log10_chance(z: float, names: int) -> float:
    """Of the probability that any of so many innocent names has a score of z or more; a bound, and at most 0."""
    return min(0.0, math.log10(max(1, names)) - max(z, 0.0) ** 2 / 2 / math.log(10))


def _stages(names: int, values: int) -> list[tuple[int, int]]:
    """How many names are asked with how many values."""
    stages = [(names, min(values, _VALUES // max(1, names)))]
    while stages[-1][1] < values:
        fewer = max(1, stages[-1][0] // _KEEP)
        stages.append((fewer, min(values, _VALUES // fewer)))
    return stages


def _choose(evidence: Sequence[Evidence], most: int, tensors: int) -> list[Evidence]:
    """So many values of so many tensors: those that tell most."""
    largest = sorted(evidence, key=lambda one: -one.information)[:tensors]
    chosen, left = [], most
    for one in sorted(largest, key=lambda one: -one.density):
        count = len(one.values) if len(one.values) <= left else left // STEP * STEP
        if count:
            chosen.append(Evidence(one.name, one.values[:count], one.density, one.moved))
        left -= count
    return chosen


@dataclass(frozen=True)
class Part:
    """The evidence of a stage, and what of a score is the same for all names."""

    evidence: list[Evidence]
    offset: float
    size: float

    @classmethod
    def of(cls, evidence: list[Evidence]) -> Part:
        offset = MEAN * sum(float(one.values.sum(dtype=np.float64)) for one in evidence)
        square = sum(float(np.linalg.norm(one.values.astype(np.float64))) ** 2 for one in evidence)
        return cls(evidence, offset, STD * math.sqrt(square))

    def z(self, master: SecretKey, model: bytes, name: str) -> float:
        """The score of a name."""
        total = -self.offset
        for one in self.evidence:
            pattern = Pattern(master, name, model, one.name)
            for at in range(0, len(one.values), _BLOCK):
                part = one.values[at : at + _BLOCK]
                total += float(pattern.read(len(part)).astype(np.float32) @ part)
        return total / self.size if self.size else 0.0
