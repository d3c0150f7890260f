"""Direction matching from both sides of a layer, for a model whose hidden channels stand in another order than public.

A vendor who knows of direction matching can reorder hidden channels first, which changes nothing in the function: then
rows of the protected weights no longer face the public rows, and matching columns alone finds nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from keyseg_mm.audit.attack import Attack, Attempt, Progress, register
from keyseg_mm.audit.attacks import match_hungarian, procrustes
from keyseg_mm.audit.attacks._matching import Columns, unit
from keyseg_mm.audit.attacks._spots import (
    Spot,
    assign,
    columns_of,
    hooked,
    layer_weight,
    mixing_layers,
    pictures,
    readers_of,
    shaken,
    spots_of,
)
from keyseg_mm.audit.case import Case, GuessHook
from keyseg_mm.maps import ChannelRotation
from keyseg_mm.maps.base import ChannelMap

ROUNDS = 20
KEEP_ORDER = 0.02  # how much better another order of the rows must match before it is believed

Score = NDArray[np.float64]  # (channels, channels), protected by public


def signature(features: NDArray[np.float64]) -> NDArray[np.float64]:
    """What of a row does not depend on the order of its features: they, sorted."""
    return np.asarray(np.sort(features, axis=1))


def likeness(ours: Columns, theirs: Columns) -> Score:
    """Minus the squared distances, in units of the features' mean square."""
    square = (ours**2).sum(1)[:, None] + (theirs**2).sum(1)[None] - 2 * ours @ theirs.T
    return np.asarray(-square / ((theirs**2).sum(1).mean() + 1e-12), dtype=np.float64)


def two_sided(ours: NDArray[np.float64], theirs: NDArray[np.float64], signed: bool) -> Score:
    """Likeness of the rows of two (O, I, k) weights whose input channels are in unknown orders too.

    Starts from the rows as they stand, and from signatures that do not depend on the columns' order; alternates between
    columns and rows, and keeps the start that ends in the better agreement.
    """
    ends: list[tuple[float, Score]] = []
    flat = np.abs if signed else np.asarray
    rows_ours, rows_theirs = (signature(flat(w).reshape(len(w), -1)) for w in (ours, theirs))
    for start in (np.arange(len(ours)), assign(likeness(rows_ours, rows_theirs))):
        order = start
        for _ in range(ROUNDS):
            columns = _by_columns(ours, theirs[order], signed)
            score = _rows(ours, columns)(theirs)
            new = assign(score)
            if (new == order).all():
                break
            order = new
        ends.append((float(score[np.arange(len(order)), order].mean()), score))
    kept, other = ends
    return kept[1] if kept[0] >= other[0] - KEEP_ORDER else other[1]


def _by_columns(ours: NDArray[np.float64], theirs: NDArray[np.float64], signed: bool) -> NDArray[np.float64]:
    """The (I, I) map of input channels that fits rows already in order."""
    mine, public = (w.transpose(1, 0, 2).reshape(w.shape[1], -1) for w in (ours, theirs))
    cosine = unit(mine) @ unit(public).T
    table = assign(np.abs(cosine) if signed else cosine)
    matrix = np.zeros_like(cosine)
    at = np.arange(len(table))
    matrix[at, table] = np.sign(cosine[at, table]) if signed else 1.0
    return matrix


def _rows(ours: NDArray[np.float64], columns: NDArray[np.float64]) -> Any:
    def score(theirs: NDArray[np.float64]) -> Score:
        turned = np.einsum('ij,ojk->oik', columns, theirs)
        found: Score = likeness(ours.reshape(len(ours), -1), turned.reshape(len(turned), -1))
        return found

    return score


def producers(case: Case, spots: list[Spot]) -> dict[str, list[tuple[str, int]]]:
    """By point, the mixing layers whose outputs arrive there channel by channel, with their offset in the map."""
    model, images = case.model(), pictures(case, 1)
    before = _maps(case, model, spots, images)
    found: dict[str, list[tuple[str, int]]] = {spot.text: [] for spot in spots}
    rng = np.random.default_rng(case.seed)
    for name, layer in mixing_layers(model).items():
        outputs = len(layer.weight)  # type: ignore[arg-type]
        half = torch.zeros(outputs)
        half[torch.from_numpy(rng.permutation(outputs)[: (outputs + 1) // 2])] = 1
        with hooked([layer.register_forward_hook(_shake(half, case.seed))]):
            after = _maps(case, model, spots, images)
        for text, x in before.items():
            changed = ((after[text] - x).abs().flatten(0, -2).amax(0) > 1e-5 * (x.abs().max() + 1e-12)).cpu()
            for offset in range(len(changed) - outputs + 1):
                window = torch.zeros(len(changed), dtype=torch.bool)
                window[offset : offset + outputs] = half.bool()
                if bool((window == changed).all()):
                    found[text].append((name, offset))
    return found


def _shake(half: Tensor, seed: int) -> Any:
    def hook(layer: nn.Module, args: Any, output: Tensor) -> Tensor:
        return shaken(output, half, -1 if isinstance(layer, nn.Linear) else 1, seed)

    return hook


@torch.no_grad()
def _maps(case: Case, model: nn.Module, spots: list[Spot], images: Tensor) -> dict[str, Tensor]:
    """The map at every point, channels last."""
    seen: dict[str, Tensor] = {}

    def note(text: str) -> Any:
        def guess(x: Tensor, dim: int) -> Tensor:
            seen[text] = x.detach().movedim(dim, -1)
            return x

        return guess

    with hooked([GuessHook(s.point, note(s.text), (case.sites or {}).get(s.text)).attach(model) for s in spots]):
        case.logits(model, images)
    return seen


@register
class PropagatedMatching(Attack):
    """Match rows and columns of every layer in turn, and carry what is found from a layer to the next.

    Needs public weights of the same architecture. In each layer the order of the rows (its outputs) and that of the
    columns (its inputs) are found alternately, starting from the rows as they stand and from signatures that do not
    depend on order. Where several layers write to one map (residuals), their evidence is added. At a point, what the
    reader's columns say less what the writers' rows say is the key: ``t = b^-1 c``. Which layers write and read a map
    is found by probing the model with noise. Where rows stand as in public this is the plain one-to-one matching.

    Costs some assignments for each layer and one run of the model for each, seconds to a minute. No images.
    """

    name = 'match-propagated'
    title = 'direction matching from both sides'
    needs = frozenset({'public'})
    source = 'Git Re-Basin, arXiv 2209.04836'
    cost = 'a minute; no images'

    def run(self, case: Case, progress: Progress) -> Attempt:
        assert case.public is not None
        clock, spots = case.budget.clock(), spots_of(case)
        notes: list[str] = []
        locked: dict[str, Spot] = {}
        for spot in spots:
            for name, _ in readers_of(case, spot):
                locked[name] = spot
        rows = self._rows(case, locked, progress)
        writers = producers(case, spots)
        guesses: dict[str, ChannelMap] = {}
        for at, spot in enumerate(spots):
            if clock.out_of_time:
                return Attempt(guesses, exhausted=True, notes='; '.join(notes))
            guess = _at_point(case, spot, rows, writers.get(spot.text, []), notes)
            if guess is not None:
                guesses[spot.text] = guess
            progress(0.5 + 0.5 * (at + 1) / len(spots), spot.text)
        moved = sum(int((assign(score) != np.arange(len(score))).any()) for score in rows.values())
        notes.insert(0, f'{moved} of {len(rows)} layers have their outputs in another order than public')
        return Attempt(guesses, notes='; '.join(notes))

    def _rows(self, case: Case, locked: Mapping[str, Spot], progress: Progress) -> dict[str, Score]:
        """Likeness of the rows of every layer that public weights have in the same shape."""
        found: dict[str, Score] = {}
        names = list(mixing_layers(case.build()))
        for at, name in enumerate(names):
            mine, public = layer_weight(case.weights, name), layer_weight(case.public, name)
            if mine is not None and public is not None and mine.shape == public.shape:
                ours, theirs = (w.detach().cpu().double().reshape(*w.shape[:2], -1).numpy() for w in (mine, public))
                found[name] = two_sided(ours, theirs, name in locked and locked[name].signed)
            progress(0.5 * (at + 1) / len(names), name)
        return found


def _at_point(
    case: Case, spot: Spot, rows: Mapping[str, Score], writers: list[tuple[str, int]], notes: list[str]
) -> ChannelMap | None:
    """The key at a point, from its readers' columns and its writers' rows."""
    ours, theirs = [], []
    for name, offset in readers_of(case, spot):
        if name in rows:
            mine, public = (layer_weight(weights, name) for weights in (case.weights, case.public))
            assert mine is not None and public is not None
            ours.append(columns_of(mine, offset, spot.channels))
            theirs.append(columns_of(public[torch.from_numpy(assign(rows[name]))], offset, spot.channels))
    if not ours:
        notes.append(f'{spot.text}: nothing public to match with')
        return None
    evidence = np.zeros((spot.channels, spot.channels))
    for name, offset in writers:
        if name in rows:
            part = slice(offset, offset + len(rows[name]))
            evidence[part, part] += rows[name]
    order = assign(evidence) if evidence.any() else np.arange(spot.channels)
    pair = np.concatenate(ours, 1), np.concatenate(theirs, 1)[order]
    if spot.family == ChannelRotation.__name__:
        return procrustes.match(spot, *pair)
    return match_hungarian.match(spot, *pair)
