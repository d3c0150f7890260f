"""A network that restores images of keys it has never seen."""

from __future__ import annotations

import numpy as np

from keyseg_mm.audit.attack import Progress
from keyseg_mm.audit.restoring.attack import Restored, Restoring, register
from keyseg_mm.audit.restoring.attacks._network import cropped, inverted, trained
from keyseg_mm.audit.restoring.case import ImageCase
from keyseg_mm.audit.restoring.scheme import BlockMap, Images


@register
class InverseNetwork(Restoring):
    """The attacker encrypts his own photos, with another cipher of his own in each step, and trains a network on them.

    It learns what all keys have in common: what the statistics of a block and of those around say of the plain image.
    """

    name, title = 'inverse-network', 'an inverse network, trained under other keys'
    needs = frozenset({'public'})
    source = 'inverse transformation network attack, as in Sirichotedumrong and Kiya, arXiv 2010.06198'
    cost = 'a training of a small U-Net'

    def run(self, case: ImageCase, progress: Progress) -> Restored:
        """Train, and restore."""
        photos = case.public
        assert photos is not None

        def draw(rng: np.random.Generator) -> tuple[Images, Images]:
            (plain,) = cropped((photos,), case.scheme.block, rng)
            if rng.random() < 0.5:
                plain = np.ascontiguousarray(plain[:, :, ::-1])  # mirrored photos are photos too
            return plain, BlockMap.drawn(case.scheme, rng).encrypt(plain)

        clock = case.budget.clock()
        net = trained(case.scheme, False, draw, clock, case.seed, progress)
        notes = f'{clock.steps} steps on {len(photos)} photos.'
        return Restored(inverted(net, case.encrypted), exhausted=clock.steps < case.budget.steps, notes=notes)
