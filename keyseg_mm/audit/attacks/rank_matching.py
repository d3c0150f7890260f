"""Encrypted weights put in the order of public ones."""

from __future__ import annotations

from torch import Tensor

from keyseg_mm.audit.attack import Attack, Attempt, Progress, register
from keyseg_mm.audit.case import Case, load_weights
from keyseg_mm.audit.kinds import WEIGHTS
from keyseg_mm.maps.order import places, raw


@register
class RankMatching(Attack):
    """Give each tensor's moved values the order of the public ones: the smallest goes where the smallest is there.

    Needs public weights. An order hides where a value belongs and not what it is. Of a model that was fine-tuned from
    public weights each value has moved a little only, so ranks are nearly the same; the result has the public order and
    the protected values. Where a few values are moved, their places are known from the stamp and the magnitudes.

    Costs two sorts of all values.
    """

    name = 'rank-matching'
    title = 'values in the order of public weights'
    needs = frozenset({'public'})
    against = frozenset({WEIGHTS})
    kind = 'retrain'
    source = (
        'one-dimensional optimal transport: sorted values match (Villani, 2003); for locks as ArrowMatch for directions'
    )
    cost = 'two sorts of all weights'

    def run(self, case: Case, progress: Progress) -> Attempt:
        assert case.public is not None
        weights, matched = dict(case.weights), 0
        for at, entry in enumerate(case.plan.tensors):
            known = case.public.get(entry.names[0])
            mine = weights[entry.names[0]]
            if known is not None and known.shape == mine.shape:
                found = _in_order(mine, known, entry.count)
                weights.update(dict.fromkeys(entry.names, found))
                matched += 1
            progress((at + 1) / len(case.plan.tensors), entry.names[0])
        model = case.build()
        load_weights(model, weights)
        return Attempt(
            model=model.eval(), notes=f'{matched} of {len(case.plan.tensors)} tensors are in the public file'
        )


def _in_order(mine: Tensor, known: Tensor, count: int) -> Tensor:
    values, guide = mine.detach().clone().flatten(), known.detach().flatten()
    moved = places(raw(mine), count)
    if moved is None:
        return mine
    ranks = guide[moved].argsort().argsort()
    values[moved] = values[moved].sort().values[ranks]
    return values.view_as(mine)
