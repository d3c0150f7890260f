"""The order of a block's values, by comparison with photos."""

from __future__ import annotations

from keyseg_mm.audit.attack import Progress
from keyseg_mm.audit.restoring.attack import Restored, Restoring, register
from keyseg_mm.audit.restoring.attacks._order import MOST_VALUES, find_order
from keyseg_mm.audit.restoring.attacks._signs import split_by_sign, which_way
from keyseg_mm.audit.restoring.case import ImageCase
from keyseg_mm.audit.restoring.scheme import BlockMap, Images, Scheme, cut


def restored(case: ImageCase, photos: Images, progress: Progress, notes: str = '') -> Restored:
    """Decrypt with the order under which encrypted values go together as those of photos do."""
    block, changed = case.scheme.block, None
    images = case.encrypted
    if case.scheme.changes != 'none':
        group = split_by_sign(cut(images, block))
        # a permutation within blocks leaves photos as unlike their negatives as they were
        signs = which_way(images, [BlockMap(block, changed=found) for found in (group, ~group)], case.public)
        changed, images = signs.changed, signs.decrypt(images)
    clock = case.budget.clock()
    order, late = find_order(cut(images, block), cut(photos, block), case.scheme.moves, clock, progress)
    guess = BlockMap(block, order, changed)
    return Restored(guess.decrypt(case.encrypted), guess, late, notes)


@register
class NeighbourOrder(Restoring):
    """Values of photos vary together in a known way, the nearer the more, and all blocks are permuted alike.

    So the permutation can be read off the encrypted images: see :mod:`keyseg_mm.audit.restoring.attacks._order`. Where
    values are negated too, the signs are found first, as by :mod:`.correlation_signs`.
    """

    name, title = 'neighbour-order', 'values ordered by neighbourhood, after photos'
    needs = frozenset({'public'})
    source = 'worked out for this audit: a jigsaw of correlations, solved by FAQ (Vogelstein et al. 2015)'
    cost = 'some twenty assignments of 3 M M values: seconds at M = 16, minutes at M = 32, the largest'

    @classmethod
    def fits(cls, scheme: Scheme) -> bool:
        """Where values change places, in blocks that are not too large."""
        return scheme.moves != 'none' and scheme.values <= MOST_VALUES

    def run(self, case: ImageCase, progress: Progress) -> Restored:
        """Compare with the attacker's photos."""
        assert case.public is not None
        return restored(case, case.public, progress)
