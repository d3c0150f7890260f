"""What locking a model is going to do, before it is done."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from keyseg_mm.entries import Entry, MapEntry
from keyseg_mm.model.points import PRESETS, Point
from keyseg_mm.model.sites import Site, Trace
from keyseg_mm.stamp import Stamp


@dataclass(frozen=True)
class Plan:
    """What locking a model is going to do; public.

    Attributes:
        scheme: name of the scheme.
        entries: what is going to be encrypted.
        left_out: what stays plain, by name, each with the reason.
        sites: of the entries that are feature maps, in the same order.
        asked: the points and presets that were asked for.
        trace: what was run to find out; with its passes, if it has some, the lock is proved.
    """

    scheme: str
    entries: tuple[Entry, ...]
    left_out: dict[str, str] = field(default_factory=dict)
    sites: tuple[Site, ...] = ()
    asked: tuple[str, ...] = ()
    trace: Trace | None = field(default=None, repr=False, compare=False)

    def to_stamp(self, key_id: str, salt: bytes) -> Stamp:
        """The stamp for a key and a salt, without an envelope."""
        return Stamp(key_id, salt, self.entries)

    @property
    def maps(self) -> tuple[MapEntry, ...]:
        """The entries that are feature maps."""
        return tuple(entry for entry in self.entries if isinstance(entry, MapEntry))

    @property
    def named(self) -> tuple[str, ...]:
        """The points that were asked for by name."""
        return tuple(text for text in self.asked if text not in PRESETS)

    def without(self, points: Iterable[str], why: str) -> Plan:
        """The plan less some points."""
        drop = set(points)
        left = {**self.left_out, **dict.fromkeys((Point.parse(point).name for point in drop), why)}
        kept = [index for index, entry in enumerate(self.maps) if entry.point not in drop]
        return replace(self._only(kept), left_out=left)

    def halves(self) -> tuple[Plan, Plan]:
        """Two plans, each for half of the points."""
        count = len(self.entries)
        return self._only(range(count // 2)), self._only(range(count // 2, count))

    def _only(self, indices: Iterable[int]) -> Plan:
        kept = list(indices)
        return replace(self, entries=tuple(self.entries[i] for i in kept), sites=tuple(self.sites[i] for i in kept))
