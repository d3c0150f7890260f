"""Learnable stand-ins for block-wise transforms of feature maps."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from keyseg_mm.audit.attack import Attack, Attempt, Progress, register
from keyseg_mm.audit.attacks._fronts import MOST, BlockMatrix, BlockScales
from keyseg_mm.audit.attacks._learn import StandIn, cross_entropy, freeze, place
from keyseg_mm.audit.attacks._spots import Spot, firing_order, spots_of
from keyseg_mm.audit.attacks._substitute import halves, learn, tenth
from keyseg_mm.audit.case import Case, Photos
from keyseg_mm.audit.kinds import BLOCKS
from keyseg_mm.baselines.blockwise import DEFAULT_BLOCK, NegativePositive


class BlockStandIn(StandIn):
    """A learnable map of the blocks at one point.

    Args:
        spot: where.
        start: see :class:`~keyseg_mm.audit.attacks._fronts.BlockMatrix`.
    """

    def __init__(self, spot: Spot, start: str) -> None:
        super().__init__(spot)
        block = int(spot.entry.transform.get('block', DEFAULT_BLOCK))
        count = spot.channels * block * block
        scaled = spot.family == NegativePositive.__name__ or count > MOST
        self.change: nn.Module = (BlockScales if scaled else BlockMatrix)(count, block, start)

    def forward(self, x: Tensor, dim: int) -> Tensor:
        changed: Tensor = self.change(x)
        return changed


@register
class SubstituteBlocks(Attack):
    """Put a learnable map of the blocks where each encryptor would be, and train nothing but these.

    Needs labelled images. A shuffle of a block of b by b positions and c channels is a matrix of c b b values to a
    side, a negative/positive transform a scale for each of them; the weights stay as they are. A fifth of the steps
    tries two starts, nothing encrypted and every shuffle as likely; the better goes on with Adam on the cross entropy.

    Costs one forward and backward pass per step, like training. Blocks of more than 4096 values get scales only.
    """

    name = 'substitute-blocks'
    title = 'substitute block layers, jointly'
    needs = frozenset({'labelled'})
    against = frozenset({BLOCKS})
    kind = 'retrain'
    source = 'Chen et al., CVPR 2023 (ambiguity attack on passports), on blocks'
    cost = 'as long as training for the same steps'
    LR = 0.01

    def run(self, case: Case, progress: Progress) -> Attempt:
        assert case.labelled is not None
        clock, spots = case.budget.clock(), firing_order(case, spots_of(case))
        photos, held = halves(case)
        first, tries = max(1, case.budget.steps // 10), []
        for at, start in enumerate(('identity', 'uniform')):
            stand_ins: list[StandIn] = [BlockStandIn(spot, start) for spot in spots]
            learn(case, stand_ins, stand_ins, photos, first, self.LR, clock, partial(tenth, progress, at))
            tries.append((self._worth(case, stand_ins, held), start, stand_ins))
        value, start, stand_ins = min(tries, key=lambda item: item[0])
        rest = case.budget.steps - clock.steps
        losses = learn(
            case, stand_ins, stand_ins, photos, rest, self.LR, clock, lambda s, w: progress(0.2 + 0.8 * s, w)
        )
        after = self._worth(case, stand_ins, held)
        words = f'started from {start}; held-back cross entropy {value:.2f}, at last {after:.2f}'
        trail = [{'step': at, 'loss': loss} for at, loss in enumerate(losses)]
        return Attempt({}, _placed(case, stand_ins), len(case.labelled), clock.out_of_time, words, trail)

    @staticmethod
    def _worth(case: Case, stand_ins: list[StandIn], held: Photos) -> float:
        with torch.no_grad():
            return float(cross_entropy(case, _placed(case, stand_ins), held))


def _placed(case: Case, stand_ins: list[StandIn]) -> nn.Module:
    model = freeze(case.model())
    place(case, model, stand_ins)
    return model
