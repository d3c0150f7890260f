"""Which encryption is under attack: that of a config, or that of a checkpoint's stamp."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config

from keyseg_mm.audit.images.photos import encryption_step
from keyseg_mm.checkpoint.files import read_checkpoint
from keyseg_mm.errors import KeysegError, PlanMismatchError
from keyseg_mm.images.plan import ImagePlan, check_method, only_plan_in_meta, read_salt
from keyseg_mm.maps.patches import check_steps
from keyseg_mm.patchplan import PatchPlan
from keyseg_mm.stamp import SALT_BYTES

#: Gives the checked stamp of a state_dict, or None.
Trust = Callable[[Mapping[str, Any]], PatchPlan | None]


def plan_of(cfg: Config, checkpoint: Path | None, key_id: str, trust: Trust) -> ImagePlan | PatchPlan:
    """How images are encrypted.

    Args:
        cfg: the config, whose test pipeline may encrypt.
        checkpoint: whose stamp or meta may say it; may be None.
        key_id: of the true key.
        trust: reads a state_dict's stamp with the key.

    Raises:
        KeysegError: neither says that images are encrypted, they contradict each other, or the key is another.
    """
    named = _of_config(cfg, key_id)
    stamped = _of_checkpoint(checkpoint, trust) if checkpoint else None
    if stamped is None:
        if named is None:
            raise KeysegError(_nothing(checkpoint))
        return named
    if isinstance(named, ImagePlan) and named != stamped:
        raise PlanMismatchError(
            f'the config encrypts images as {named}, and {checkpoint} wants {stamped}; audit one of them: leave '
            'the checkpoint out, or give the config that goes with it'
        )
    return stamped


def _of_config(cfg: Config, key_id: str) -> ImagePlan | PatchPlan | None:
    step = encryption_step(cfg)
    if step is None:
        return None
    if 'EncryptImage' in str(step['type']):
        method, block = step.get('method', 'SHF'), step.get('block', 8)
        check_method(method, block)
        return ImagePlan(method, block, key_id, read_salt(step.get('salt')))
    if step.get('patch') is None or step.get('salt') is None:
        return None  # the step waits for a checkpoint to tell it
    patch, permute, negate = step['patch'], step.get('permute', 'all'), step.get('negate', True)
    check_steps(patch, permute, negate)
    return bare_patch_plan(patch, permute, negate, key_id, read_salt(step['salt']))


def bare_patch_plan(patch: int, permute: str, negate: bool, key_id: str, salt: bytes) -> PatchPlan:
    """What says how images are encrypted, with nothing of the model."""
    return PatchPlan(patch, permute, negate, 'rgb', (0.0,) * 3, (1.0,) * 3, (), key_id, salt or bytes(SALT_BYTES))


def _of_checkpoint(path: Path, trust: Trust) -> ImagePlan | PatchPlan | None:
    checkpoint = read_checkpoint(path)
    return trust(checkpoint['state_dict']) or only_plan_in_meta(checkpoint.get('meta'))


def _nothing(checkpoint: Path | None) -> str:
    if checkpoint is not None:
        return (
            f'neither the config nor {checkpoint} encrypts images: give a config with keyseg_mm.EncryptImage in its '
            'test pipeline, or a checkpoint of `keyseg lock-patches`'
        )
    return (
        "this config encrypts no images: put dict(type='keyseg_mm.EncryptImage', ...) into its test pipeline; or give "
        'CHECKPOINT, to audit that model, or with --images, a model that takes encrypted images'
    )
