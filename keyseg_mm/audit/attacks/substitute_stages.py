"""Substitute key layers learned stage by stage, each rounded before the next is begun."""

from __future__ import annotations

from keyseg_mm.audit.attack import Attack, Attempt, Progress, register
from keyseg_mm.audit.attacks._learn import Fitness, FreeMatrix, StandIn
from keyseg_mm.audit.attacks._spots import array_of, firing_order, spots_of
from keyseg_mm.audit.attacks._substitute import choose, halves, learn
from keyseg_mm.audit.case import Case, MatrixMap
from keyseg_mm.maps.base import ChannelMap

LR = 0.02


@register
class SubstituteStages(Attack):
    """Learn the substitute matrix of one point after another, in the order of the forward pass, then all together.

    Needs labelled images. With many points the joint problem has many poor solutions. Here one matrix learns at a time,
    the later ones standing at the identity until it is their turn; a finished one is rounded to the stamp's family if
    that does not cost much cross entropy. A third of the steps is left for all together at the end.

    Costs one forward and backward pass per step, like training.
    """

    name = 'substitute-stages'
    title = 'substitute key layers, stage by stage'
    needs = frozenset({'labelled'})
    source = 'Chen et al., CVPR 2023 (ambiguity attack on passports)'
    cost = 'as long as training for the same steps'
    TOLERANCE = 1.05  # a rounding may cost this factor of cross entropy

    def run(self, case: Case, progress: Progress) -> Attempt:
        assert case.labelled is not None
        clock, spots = case.budget.clock(), firing_order(case, spots_of(case))
        photos, held = halves(case)
        fitness, trail = Fitness(case, photos, spots), []
        stand_ins: list[FreeMatrix] = [FreeMatrix(spot, 'identity') for spot in spots]
        each = max(1, case.budget.steps * 2 // 3 // max(1, len(spots)))
        for at, stand_in in enumerate(stand_ins):
            learn(case, stand_ins, [stand_in], photos, each, LR, clock, lambda s, w: None)
            kept = self._round(fitness, stand_ins[: at + 1])
            trail.append({'point': stand_in.spot.text, 'cross_entropy': kept})
            progress(2 / 3 * (at + 1) / len(spots), f'{stand_in.spot.text}: {kept:.2f}')
        last: list[StandIn] = list(stand_ins)
        rest = case.budget.steps - clock.steps
        learn(case, last, last, photos, rest, LR / 2, clock, lambda s, w: progress(2 / 3 + s / 3, w))
        guesses, words = choose(case, spots, last, held)
        return Attempt(guesses, None, len(case.labelled), clock.out_of_time, words, trail)

    def _round(self, fitness: Fitness, done: list[FreeMatrix]) -> float:
        """Round the last of those done if that costs little; the cross entropy afterwards."""
        free: dict[str, ChannelMap] = {s.spot.text: MatrixMap(s.matrix().detach()) for s in done}
        rounded = {**free, done[-1].spot.text: done[-1].rounded()}
        before, after = fitness(free), fitness(rounded)
        if after > before * self.TOLERANCE:
            return before
        matrix = array_of(rounded[done[-1].spot.text])
        done[-1].value.data.copy_(done[-1].value.new_tensor(matrix))
        return after
