"""The negated places of NP from the signs of correlations between values."""

from __future__ import annotations

from keyseg_mm.audit.attack import Progress
from keyseg_mm.audit.restoring.attack import Restored, Restoring, register
from keyseg_mm.audit.restoring.attacks._signs import split_by_sign, which_way
from keyseg_mm.audit.restoring.case import ImageCase
from keyseg_mm.audit.restoring.scheme import BlockMap, Scheme, cut


@register
class CorrelationSigns(Restoring):
    """All blocks are negated at the same places, and neighbouring values of photos rise and fall together.

    So two places are negated alike if they correlate, and differently if they anti-correlate. The first eigenvector of
    the covariance of all places splits them in two groups; which of the two is the negated one is a single bit, and
    photos differ from negatives: the sky is bright. If blocks have an odd number of values, the smaller group is it.
    """

    name, title = 'correlation-signs', 'negated places from the signs of correlations'
    helped_by = frozenset({'public'})
    source = 'worked out for this audit'
    cost = 'one eigenvector of 3 M M values'

    @classmethod
    def fits(cls, scheme: Scheme) -> bool:
        """Where values are negated, and stay in their places."""
        return 'negated' in scheme.changes and scheme.moves == 'none'

    def run(self, case: ImageCase, progress: Progress) -> Restored:
        """Split, choose, and undo."""
        scheme, n = case.scheme, case.scheme.values
        group = split_by_sign(cut(case.encrypted, scheme.block))
        maps = [BlockMap(scheme.block, changed=changed) for changed in (group, ~group)]
        guess = which_way(case.encrypted, maps, case.public)
        if scheme.changes == 'half negated' and n % 2:
            guess = min(maps, key=lambda found: abs(int(found.changed.sum()) - n // 2))
        return Restored(guess.decrypt(case.encrypted), guess)
