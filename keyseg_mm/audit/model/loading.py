"""What an audit works on: config, checkpoints and photos, read and checked before anything long begins."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.logging import MMLogger
from mmengine.model import revert_sync_batchnorm
from torch import Tensor, nn

from keyseg_mm.audit.engine.budget import seed_everything
from keyseg_mm.audit.model.forward import load_weights
from keyseg_mm.checkpoint.files import read_checkpoint
from keyseg_mm.entries import Entry, MapEntry, TensorEntry
from keyseg_mm.envelope import SEALED
from keyseg_mm.errors import KeysegError, PlainCheckpointError, StampError
from keyseg_mm.keys.identity import Key
from keyseg_mm.locking import unwrap
from keyseg_mm.mm.config import build_plain_model, rewritten
from keyseg_mm.mm.dryrun import trace_module, undisturbed
from keyseg_mm.model.points import Point
from keyseg_mm.model.sites import Site
from keyseg_mm.seal.sections import sealed_stamp, unseal_section
from keyseg_mm.stamp import Stamp, is_stamp, stamps_of


@dataclass(frozen=True)
class Protected:
    """A protected checkpoint, taken apart."""

    own: Stamp  # as it is in the file
    prefix: str  # of the module that the stamp belongs to
    stamp: Stamp  # the same with the names of the whole model
    weights: dict[str, Tensor]  # the state_dict without the stamp
    sealed: dict[str, Any] | None = None  # the state_dict as it is in the file, where that is sealed


def read_protected(path: Path, device: torch.device, key: Key) -> Protected:
    """Read a protected checkpoint, and take its seal off.

    Raises:
        PlainCheckpointError: it carries no stamp, or nothing but a seal.
        StampError: it carries several.
        KeyMismatchError: it is sealed to others.
        IntegrityError: it was altered.
    """
    read = state = read_checkpoint(path)['state_dict']
    seal = sealed_stamp(state)
    if seal is not None:
        state = unseal_section(key, state)
    stamps = stamps_of(state)
    if seal is not None and not stamps:
        raise PlainCheckpointError(
            f'{path} is sealed, and has no maps in its weights: whoever opens it, or reads the memory of who runs it, '
            'has the plain model, and there is nothing to attack but the cipher. To audit maps: keyseg lock --config'
        )
    if not stamps:
        raise PlainCheckpointError(
            f'{path} is plain (it carries no stamp), so there is nothing to audit: train with a key, or lock it first'
        )
    if len(stamps) > 1:
        raise StampError(f'{path} carries {len(stamps)} stamps; an audit takes models with one protection')
    prefix, stamp = next(iter(stamps.items()))
    noise = read if seal is not None and seal.seal is not None and seal.seal.mode == SEALED else None
    return Protected(stamp, prefix, whole_model_stamp(stamp, prefix), _tensors(state, device), noise)


def whole_model_stamp(stamp: Stamp, prefix: str) -> Stamp:
    """A stamp with its points, and what else names modules, renamed from a module's view to the whole model's."""
    if not prefix:
        return stamp
    return dataclasses.replace(stamp, entries=tuple(_renamed(entry, prefix) for entry in stamp.entries))


def _renamed(entry: Entry, prefix: str) -> Entry:
    if isinstance(entry, TensorEntry):
        return dataclasses.replace(entry, names=tuple(f'{prefix}.{name}' for name in entry.names))
    if not isinstance(entry, MapEntry):
        return entry
    point = Point.parse(entry.point)
    name = prefix if point.name == '.' else f'{prefix}.{point.name}'
    weights = tuple(f'{prefix}.{weight}' for weight in entry.weights)
    return dataclasses.replace(entry, point=str(dataclasses.replace(point, name=name)), weights=weights)


def read_public(path: Path, weights: Mapping[str, Tensor], device: torch.device | str = 'cpu') -> dict[str, Tensor]:
    """Read public plain weights, by the names of a model's own: files of backbones may have the backbone's.

    Args:
        path: of the whole model, or of its backbone.
        weights: of that model.
        device: where to put them.

    Raises:
        KeysegError: the file is protected, so no public one, or of another model.
    """
    state = unwrap(read_checkpoint(path)['state_dict'])
    if stamps_of(state):
        raise KeysegError(f'{path} is protected; --public takes the plain weights that anybody can have')
    public = _tensors(state, device)
    named = ({prefix + name: value for name, value in public.items()} for prefix in ('', 'backbone.'))
    found = max(({n: v for n, v in known.items() if n in weights} for known in named), key=len)
    if not any(found[name].shape == weights[name].shape for name in found):
        raise KeysegError(
            f'{path} has no weights in common with this model; --public takes those it was trained from, whole or the '
            'backbone alone'
        )
    return found


def _tensors(state: Mapping[str, Any], device: torch.device | str) -> dict[str, Tensor]:
    kept = {name: value for name, value in state.items() if isinstance(value, Tensor) and not is_stamp(name)}
    return {name: value.to(device) for name, value in kept.items()}


def architecture(cfg: Config, device: torch.device, seed: int) -> Callable[[], nn.Module]:
    """What makes the plain model of a config, with seeded initial weights, in eval mode.

    Initial weights are those of the layers' own rules. Files of pretrained weights that the config names are not
    loaded: what an attacker may have of those is a grant of its own (``--public``).
    """
    own = _without_pretrained(cfg)
    return functools.partial(_build, own, device, seed)


def _build(cfg: Config, device: torch.device, seed: int) -> nn.Module:
    logger = MMLogger.get_current_instance()
    muted, logger.disabled = logger.disabled, True  # init_weights tells of every single layer
    try:
        with undisturbed():  # an attack that draws numbers before and after must not see it
            seed_everything(seed)
            model: Any = build_plain_model(cfg)
            if hasattr(model, 'init_weights'):
                model.init_weights()
    finally:
        logger.disabled = muted
    plain: nn.Module = revert_sync_batchnorm(model)  # a synchronised one waits for other processes
    return plain.to(device).eval()


def _without_pretrained(cfg: Config) -> Config:
    """The model alone: whatever else a config says has no part in what is built, nor in whether a result holds."""

    def strip(part: ConfigDict) -> ConfigDict:
        if isinstance(part.get('pretrained'), str):
            part['pretrained'] = None
        init = part.get('init_cfg')
        if isinstance(init, str) or (isinstance(init, dict) and init.get('type') == 'Pretrained'):
            part['init_cfg'] = None
        return part

    return Config({'model': rewritten(cfg.model, strip), 'default_scope': cfg.get('default_scope', 'mmseg')})


def fitting_sites(build: Callable[[], nn.Module], found: Protected, config: Path) -> dict[str, Site]:
    """What a dry run of the plain model shows of the stamp's points; checks that config and checkpoint belong together.

    Raises:
        KeysegError: the weights do not fit the config's model, or a point of the stamp does not fire in it.
    """
    model = build()
    try:
        load_weights(model, found.weights)
    except KeysegError as error:
        raise KeysegError(f'the checkpoint is not one of {config}: {error}') from None
    sites = trace_module(model).sites
    lacking = [e.point for e in found.stamp.maps if Point.parse(e.point) not in sites]
    if lacking:
        raise KeysegError(
            f'points of the stamp that do not fire in the model of {config}: {", ".join(lacking)}; is it the right one?'
        )
    return {entry.point: sites[Point.parse(entry.point)] for entry in found.stamp.maps}


def num_classes_of(model: nn.Module) -> int:
    """Number of classes of a segmentor of the host.

    Raises:
        KeysegError: it does not say.
    """
    head = getattr(model, 'decode_head', None)
    if isinstance(head, nn.ModuleList):  # cascades: the last one answers
        head = head[-1]
    count = getattr(head, 'num_classes', None) or getattr(model, 'num_classes', None)
    if not isinstance(count, int):
        raise KeysegError(
            f'this {type(model).__name__} does not say how many classes it has; the audit is for segmentors'
        )
    return count
