"""A network trained on pairs of the very key."""

from __future__ import annotations

import numpy as np

from keyseg_mm.audit.attack import Progress
from keyseg_mm.audit.restoring.attack import Restored, Restoring, register
from keyseg_mm.audit.restoring.attacks._network import cropped, inverted, trained
from keyseg_mm.audit.restoring.case import ImageCase
from keyseg_mm.audit.restoring.scheme import Images

_FEWEST = 2  # pairs: of one, a network learns that one image


@register
class InverseNetworkPairs(Restoring):
    """The network of :mod:`.inverse_network`, with a learnt linear map of a block's values, on pairs of the true key.

    The attack of the literature on encryptions whose structure is not known. Against these ciphers :mod:`.known_pairs`
    needs one pair and no training.
    """

    name, title = 'inverse-network-pairs', 'an inverse network, trained on known pairs'
    needs = frozenset({'pairs'})
    source = 'inverse transformation network attack, arXiv 2010.06198, here with pairs of the very key'
    cost = 'a training of a small U-Net, and of (3 M M)^2 weights for the blocks'

    @classmethod
    def possible(cls, case: ImageCase) -> bool:
        """With more than one pair."""
        return super().possible(case) and case.pairs is not None and len(case.pairs[0]) >= _FEWEST

    def run(self, case: ImageCase, progress: Progress) -> Restored:
        """Train, and restore."""
        pairs = case.pairs
        assert pairs is not None

        def draw(rng: np.random.Generator) -> tuple[Images, Images]:
            plain, encrypted = cropped(pairs, case.scheme.block, rng)
            return plain, encrypted

        clock = case.budget.clock()
        net = trained(case.scheme, True, draw, clock, case.seed, progress)
        notes = f'{clock.steps} steps on {len(pairs[0])} pairs.'
        return Restored(inverted(net, case.encrypted), exhausted=clock.steps < case.budget.steps, notes=notes)
