"""Direction matching from both sides of a layer, for a model whose hidden channels stand in another order than public.

A vendor who knows of direction matching can reorder hidden channels first, which changes nothing in the function: then
rows of the protected weights no longer face the public rows, and matching columns alone finds nothing.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from keyseg_mm.audit.engine.budget import Progress
from keyseg_mm.audit.model.attack import Attack, Attempt, Case, PublicWeights, register
from keyseg_mm.audit.model.attacks.matching import by_kind, unit
from keyseg_mm.audit.model.attacks.points import AttackedPoint, Guesses, Matrix, assign, points_of
from keyseg_mm.audit.model.attacks.probing import Columns, Links, facing_columns, mixing_layers, readers_of, writers_of

ROUNDS = 20
KEEP_ORDER = 0.02  # how much better another order of the rows must match before it is believed


@register
class PropagatedMatching(Attack):
    """Match rows and columns of every layer in turn, and carry what is found from a layer to the next.

    Needs public weights of the same architecture. In each layer the order of the rows (its outputs) and that of the
    columns (its inputs) are found alternately, starting from the rows as they stand and from signatures that do not
    depend on order. Where several layers write to one map (residuals), their evidence is added. At a point, what the
    reader's columns say less what the writers' rows say is the key: ``t = b^-1 c``. Which layers write and read a map
    is found by probing the model with noise. Where rows stand as in public this is the plain one-to-one matching.
    """

    name = 'match-propagated'
    title = 'direction matching from both sides'
    needs = frozenset({PublicWeights})
    source = 'Git Re-Basin, arXiv 2209.04836'
    cost = 'some assignments and a run of the model for each layer, seconds to a minute; no images'

    def run(self, case: Case, progress: Progress) -> Attempt:
        clock, points, guesses = case.budget.clock(), points_of(case), Guesses()
        rows = _rows(case, points, progress)
        moved = sum(int((assign(score) != np.arange(len(score))).any()) for score in rows.values())
        notes = [f'{moved} of {len(rows)} layers have their outputs in another order than public']
        reordered = _reordered(case, rows)
        writers = writers_of(case, points)
        for at, point in enumerate(points):
            if clock.out_of_time:
                return Attempt(guesses, exhausted=True, notes='; '.join(notes))
            pair = facing_columns(case, point, reordered)
            if pair is None:
                notes.append(f'{point.text}: nothing public to match with')
            else:
                guesses[point.text] = by_kind(point, pair[0], pair[1][_order(point, rows, writers[point.text])])
            progress(0.5 + 0.5 * (at + 1) / len(points), point.text)
        return Attempt(guesses, notes='; '.join(notes))


def _rows(case: Case, points: list[AttackedPoint], progress: Progress) -> dict[str, Matrix]:
    """Likeness of the rows, protected by public, of every layer that public weights have in the same shape."""
    public = case[PublicWeights].weights
    signed = {name for point in points if point.signed for name, _ in readers_of(case, point)}
    found: dict[str, Matrix] = {}
    names = list(mixing_layers(case.build()))
    for at, name in enumerate(names):
        mine, other = (weights.get(f'{name}.weight') for weights in (case.weights, public))
        if mine is not None and other is not None and mine.shape == other.shape:
            ours, theirs = (w.detach().cpu().double().reshape(*w.shape[:2], -1).numpy() for w in (mine, other))
            found[name] = two_sided(ours, theirs, name in signed)
        progress(0.5 * (at + 1) / len(names), name)
    return found


def _reordered(case: Case, rows: dict[str, Matrix]) -> dict[str, Tensor]:
    """The public weights of the layers whose rows are known, in the order of the protected rows."""
    public = case[PublicWeights].weights
    return {f'{n}.weight': public[f'{n}.weight'][torch.from_numpy(assign(rows[n]))] for n in rows}


def _order(point: AttackedPoint, rows: dict[str, Matrix], writers: Links) -> NDArray[np.int64]:
    """Which public channel each channel of a map is, by the rows of the layers that write it."""
    evidence = np.zeros((point.channels, point.channels))
    for name, offset in writers:
        if name in rows:
            part = slice(offset, offset + len(rows[name]))
            evidence[part, part] += rows[name]
    return assign(evidence) if evidence.any() else np.arange(point.channels)


def two_sided(ours: Columns, theirs: Columns, signed: bool) -> Matrix:
    """Likeness of the rows of two (O, I, k) weights whose input channels are in unknown orders too.

    Starts from the rows as they stand, and from signatures that do not depend on the columns' order; alternates between
    columns and rows, and keeps the start that ends in the better agreement.
    """
    ends: list[tuple[float, Matrix]] = []
    # what of a row does not depend on the order of its features: they, sorted
    signatures = [np.sort((np.abs(w) if signed else w).reshape(len(w), -1), axis=1) for w in (ours, theirs)]
    for order in (np.arange(len(ours)), assign(_likeness(*signatures))):
        for _ in range(ROUNDS):
            turned = np.einsum('ij,ojk->oik', _by_columns(ours, theirs[order], signed), theirs)
            score = _likeness(ours.reshape(len(ours), -1), turned.reshape(len(turned), -1))
            new = assign(score)
            if (new == order).all():
                break
            order = new
        ends.append((float(score[np.arange(len(order)), order].mean()), score))
    kept, other = ends
    return kept[1] if kept[0] >= other[0] - KEEP_ORDER else other[1]


def _likeness(ours: Columns, theirs: Columns) -> Matrix:
    """Minus the squared distances of rows, in units of the features' mean square."""
    square = (ours**2).sum(1)[:, None] + (theirs**2).sum(1)[None] - 2 * ours @ theirs.T
    return np.asarray(-square / ((theirs**2).sum(1).mean() + 1e-12), dtype=np.float64)


def _by_columns(ours: Columns, theirs: Columns, signed: bool) -> Matrix:
    """The (I, I) map of input channels that fits rows already in order."""
    mine, public = (w.transpose(1, 0, 2).reshape(w.shape[1], -1) for w in (ours, theirs))
    cosine = unit(mine) @ unit(public).T
    table, at = assign(np.abs(cosine) if signed else cosine), np.arange(len(cosine))
    matrix = np.zeros_like(cosine)
    matrix[at, table] = np.sign(cosine[at, table]) if signed else 1.0
    return matrix
