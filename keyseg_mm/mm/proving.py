"""Proofs of a training: before it, that its points protect something; after it, that its last file does."""

from __future__ import annotations

import copy
import logging

import torch
from mmengine.runner import checkpoint
from torch import nn

from keyseg_mm.checkpoint.files import read_content
from keyseg_mm.errors import NotFiredError, PointError
from keyseg_mm.locking.features import exact_part
from keyseg_mm.locking.places import entry_at
from keyseg_mm.locking.plan import Plan
from keyseg_mm.locking.proof import Outputs, agreement
from keyseg_mm.mm.bench import HostBench
from keyseg_mm.mm.compat import HOST_NAMES
from keyseg_mm.mm.effects import effects_in, places_in
from keyseg_mm.model.passes import copied
from keyseg_mm.runtime.attach import detach

logger = logging.getLogger('keyseg_mm')


def prove_points(model: nn.Module) -> str:
    """Make sure that what is going to be trained is protected at its points.

    Returns:
        What its owner should hear, empty if all is well.

    Raises:
        NotFiredError: a point that was asked for by name, or every point, does nothing to what the model predicts; or
            a layer's weight is read by a path that passes its encryptor by.
    """
    places = places_in(model)
    if not places:
        return ''
    try:
        found = effects_in(model)
    except PointError as error:
        return f'that every point protects something could not be proved: {error}'
    if found.bypassed:
        raise NotFiredError(
            f'in testing the weights at {", ".join(found.bypassed)} are read by another way than their layers, which '
            'passes the encryptors by; call the layer, or take other points'
        )
    named = [str(place.site.point) for place in places if place.is_named and str(place.site.point) in found.idle]
    if named or len(found.idle) == len(places):
        raise NotFiredError(
            f'{", ".join(named or found.idle)}: what the model predicts is the same without the encryptor there, and '
            'nothing would be protected: no head reads the map in testing, or none to which it matters. Take other '
            'points'
        )
    if found.idle:
        return f'points of no effect on what the model predicts, which the others protect: {", ".join(found.idle)}'
    return ''


def prove_exact(plan: Plan, model: nn.Module) -> Plan:
    """What of a plan any weights of a model carry exactly: no layer's weights that are read as data, by a loss for one.

    Args:
        plan: for plain weights that are to be carried.
        model: as built; it stays as it is.

    Raises:
        LockError: a point that was asked for by name is none of them.
    """
    if any(p.is_meta for p in model.parameters()):
        return plan
    double = copied(model)
    detach(double)
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in double.parameters():  # as built they may be anything, or zeros
            p.normal_(0 if p.dim() > 1 else 0.5, (len(p) / p.numel()) ** 0.5 if p.dim() > 1 else 0.1, generator=random)
    try:
        return exact_part(plan, HostBench(), double)
    except PointError as error:
        logger.warning('that plain weights carry every map exactly could not be proved: %s', error)
        return plan


def prove_file(model: nn.Module, path: str, iteration: int) -> str:
    """Make sure that the last file of a training is what it is called: right with its key, and wrong without.

    Args:
        model: as it was trained.
        path: of the file.
        iteration: at which the model is. A file of that iteration has to hold this very model.

    Returns:
        What its owner should hear, empty if all is well.

    Raises:
        NotFiredError: it is not.
        IntegrityError: the file was altered.
    """
    content = read_content(path, HOST_NAMES)
    double = copy.deepcopy(model)
    checkpoint._load_checkpoint_to_model(double, content)
    with_key = _outputs(double)
    is_this = content.get('meta', {}).get('iter') == iteration and 'ema_state_dict' not in content
    if is_this and not agreement(_outputs(model), with_key).is_equal:
        raise NotFiredError(f'{path}: opened with its key it is not the model that was trained; keep the files before')
    if not places_in(double):
        return ''
    without = agreement(with_key, _outputs(double, authorised=False))
    if without.is_the_same:
        raise NotFiredError(
            f'{path}: the model gives the same without its encryptors (relative change {without.error:.1e}): its maps '
            'protect nothing; take other points'
        )
    if without.is_close:
        return (
            f'{path}: the output barely changes without the key (relative change {without.error:.1e}); take more points'
        )
    return ''


def _outputs(model: nn.Module, authorised: bool = True) -> Outputs:
    maps = [(place.site, entry_at(place.site, {}), place.map) for place in places_in(model) if authorised]
    return HostBench().run(model, maps)
