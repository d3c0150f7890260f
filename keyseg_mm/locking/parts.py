"""Stamps of models and files that lack whole parts: a model runs, and a file is turned, without its auxiliary head."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import replace

from torch import nn

from keyseg_mm.entries import MapEntry
from keyseg_mm.model.points import ROOT, Point
from keyseg_mm.stamp import Stamp

logger = logging.getLogger('keyseg_mm')


def fit_to_model(stamp: Stamp, model: nn.Module) -> Stamp:
    """A stamp less the points of parts that a model does not have, which is said in the log."""
    return _say('model', *fitted(stamp, (name for name, _ in model.named_modules())))


def fit_to_file(stamp: Stamp, names: Iterable[str]) -> Stamp:
    """A stamp less the points and weights of parts of which a state_dict has no tensor, which is said in the log.

    Args:
        stamp: of the state_dict.
        names: of its tensors, less the stamp's prefix.
    """
    return _say('checkpoint', *fitted(stamp, names))


def fitted(stamp: Stamp, names: Iterable[str]) -> tuple[Stamp, list[str]]:
    """A stamp less what is in parts that none of the names is in, and the points that it lost."""
    there = {part for name in names for part in _parts(name)}
    kept = [_fit_entry(entry, there) if isinstance(entry, MapEntry) else entry for entry in stamp.entries]
    gone = [entry.point for entry, left in zip(stamp.entries, kept) if isinstance(entry, MapEntry) and left is None]
    entries = tuple(entry for entry in kept if entry is not None)
    if not entries:  # it is of another model, and whoever asks for its points says so
        return stamp, []
    return replace(stamp, entries=entries), gone


def _say(where: str, stamp: Stamp, gone: list[str]) -> Stamp:
    if gone:
        logger.warning('this %s lacks parts that are protected; their points are left out: %s', where, ', '.join(gone))
    return stamp


def _fit_entry(entry: MapEntry, there: set[str]) -> MapEntry | None:
    """An entry less the weights of parts that are not there; None if all of it is in such parts."""
    point = Point.parse(entry.point)
    weights = tuple(name for name in entry.weights if _parts(name)[-1] in there)
    is_there = point.name == ROOT or _parts(point.name)[-1] in there
    # what leaves a part is read by others, who need its map even if nobody makes it any more
    is_needed = bool(weights) if entry.weights else point.side == 'out' and '.' not in point.name
    return replace(entry, weights=weights) if is_there and (weights or not entry.weights) or is_needed else None


def _parts(name: str) -> list[str]:
    """The part of a model that a name is in: its first word, with its number where parts stand in a list."""
    words = name.split('.')
    return ['.'.join(words[: count + 1]) for count in range(1 + (words[1:] != [] and words[1].isdecimal()))]
