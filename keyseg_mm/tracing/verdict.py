"""All that a found file says of whose copy it is: its stamp, its fingerprint, and the maps in its weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from keyseg_mm.errors import KeysegError, LockError
from keyseg_mm.keys.key import SecretKey
from keyseg_mm.locking import unlock, unwrap
from keyseg_mm.seal.sections import sealed_stamp, unseal_section
from keyseg_mm.stamp import stamps_of
from keyseg_mm.tracing.evidence import gather, moved_share
from keyseg_mm.tracing.maps import PLAIN, Similarity, by_stamp, by_weights
from keyseg_mm.tracing.marking import model_of
from keyseg_mm.tracing.scoring import Progress, Score, search

Tensors = Mapping[str, Any]


@dataclass(frozen=True)
class Verdict:
    """Whose copy a file is.

    Attributes:
        names: how many licensees were asked about.
        stamp: whose its stamp says it is, and whether its seal bears that out; None where it says nobody's.
        scores: of the fingerprint, the largest z first; empty without an original, or where the file has no weights of
            it.
        maps: how like each copy its weights are; asked where neither stamp nor fingerprint tells.
        weights: how many tensors of the original it has.
        moved: the share of these whose channels had to be put into another order.
    """

    names: int
    stamp: tuple[str, bool] | None = None
    scores: list[Score] = field(default_factory=list)
    maps: list[Similarity] = field(default_factory=list)
    weights: int = 0
    moved: float = 0.0

    @property
    def is_forged(self) -> bool:
        """Whether its stamp was altered."""
        return self.stamp is not None and not self.stamp[1]

    @property
    def marked(self) -> list[Score]:
        """Whose fingerprints are in it, for certain."""
        return [score for score in self.scores if score.is_certain]

    @property
    def owners(self) -> list[str]:
        """Whose copies it was made of, by whatever tells."""
        if self.marked:
            return [score.name for score in self.marked]
        if self.stamp is not None and self.stamp[1]:
            return [self.stamp[0]]
        best = self.maps[0] if self.maps else None
        return [best.name] if best is not None and best.is_certain and best.name != PLAIN else []

    def sentence(self) -> str:
        """The verdict in words."""
        who = ' and '.join(repr(name) for name in self.owners)
        if self.marked:
            chance = max(score.log10_chance for score in self.marked)
            made = 'this is the copy of' if len(self.marked) == 1 else 'this was made of the copies of'
            return (
                f'{made} {who}: that any of {self.names} innocent names has such a fingerprint by chance has a '
                f'probability below {power(chance)}'
            )
        if who:
            by = 'its stamp and seal' if self.stamp is not None and self.stamp[1] else 'the maps in its weights'
            return f'this is the copy of {who}, by {by}'
        if self.stamp is not None:
            return f'its stamp names {self.stamp[0]!r}, and was altered; nothing else tells whose copy it is'
        if self.maps and self.maps[0].is_certain:
            return 'these are the plain weights: without maps, and without the fingerprint of anybody on this list'
        return 'the copy of nobody on this list, as far as this tells'

    def to_json(self) -> dict[str, Any]:
        """All of it, as plain values."""
        row = asdict(self)
        row['stamp'] = None if self.stamp is None else {'name': self.stamp[0], 'fits': self.stamp[1]}
        row['scores'] = [{**asdict(score), 'certain': score.is_certain} for score in self.scores]
        return {'owners': self.owners, 'sentence': self.sentence(), 'forged': self.is_forged, **row}


def power(log10: float) -> str:
    """A probability by its logarithm, as it is printed."""
    return '1' if log10 >= 0 else f'1e{int(log10)}' if log10 <= -1 else f'{10**log10:.1g}'


def trace(
    found: Tensors,
    original: Tensors | None,
    master: SecretKey,
    names: Sequence[str],
    progress: Progress = lambda done: None,
) -> Verdict:
    """Ask stamp, fingerprint and maps.

    Args:
        found: tensors of the file in question, by name.
        original: state_dict that licensees' copies were made of, plain or protected with the master key; None asks the
            stamp alone.
        master: the master key.
        names: of licensees.
        progress: is told which share of the search is done.

    Raises:
        KeysegError: the original cannot be opened with the master key.
    """
    said = by_stamp(found, master, names)
    if original is None:
        return Verdict(len(names), said)
    keys = {key.id: key for key in (master, *map(master.licensee, names))}
    theirs, own = (_owner(tensors, keys, master) for tensors in (found, original))
    plain = unwrap(unlock(original, own) if stamps_of(original) else original)
    evidence = gather(_plain(found, theirs), plain)
    scores = search(evidence, master, model_of(plain), names, progress)
    verdict = Verdict(len(names), said, scores, [], len(evidence), moved_share(evidence))
    if verdict.owners:
        return verdict
    try:
        maps = by_weights(_bare(found, theirs), _bare(original, own), master, names)
    except LockError:  # no layers in common by name
        maps = []
    return Verdict(len(names), said, scores, maps, verdict.weights, verdict.moved)


def _owner(tensors: Tensors, keys: Mapping[str, SecretKey], master: SecretKey) -> SecretKey:
    """Which of the keys opens a state_dict; the master key where none does."""
    ids = [key_id for stamp in stamps_of(tensors).values() for key_id in stamp.key_ids]
    return next((keys[key_id] for key_id in ids if key_id in keys), master)


def _plain(tensors: Tensors, key: SecretKey) -> dict[str, Any]:
    """Weights without seal and maps, where the key opens them; else as they are."""
    try:
        return unwrap(unlock(tensors, key) if stamps_of(tensors) else tensors)
    except KeysegError:  # altered since, trained with its key, or of others
        return _bare(tensors, key)


def _bare(tensors: Tensors, key: SecretKey) -> dict[str, Any]:
    """Weights without their seal, where the key opens it, and without the prefix of data-parallel runs."""
    stamp = sealed_stamp(tensors)
    if stamp is None or stamp.seal is None:
        return unwrap(tensors)
    try:
        return unwrap(unseal_section(key, tensors, stamp.seal.section))
    except KeysegError:
        return unwrap(tensors)
