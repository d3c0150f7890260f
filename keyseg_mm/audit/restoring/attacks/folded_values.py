"""The feature reconstruction attack: what is the same for p and 255 - p."""

from __future__ import annotations

from keyseg_mm.audit.attack import Progress
from keyseg_mm.audit.restoring.attack import Restored, Restoring, register
from keyseg_mm.audit.restoring.attacks._statistics import folded
from keyseg_mm.audit.restoring.case import ImageCase
from keyseg_mm.audit.restoring.scheme import Scheme


@register
class FoldedValues(Restoring):
    """Every value p becomes min(p, 255 - p): whether it was negated no longer matters.

    That is the plain image where it is dark, and its negative where it is bright: all edges are in their places, and
    shapes can be seen at once.
    """

    name, title = 'folded-values', 'min(p, 255 - p) of each value'
    source = 'feature reconstruction attack, as in Sirichotedumrong and Kiya, arXiv 2010.06198'
    cost = 'nothing'

    @classmethod
    def fits(cls, scheme: Scheme) -> bool:
        """Where values are negated, and stay in their places."""
        return 'negated' in scheme.changes and scheme.moves == 'none'

    def run(self, case: ImageCase, progress: Progress) -> Restored:
        """Fold."""
        return Restored(folded(case.encrypted), notes='Bright areas come out dark; outlines are exact.')
