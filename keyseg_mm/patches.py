"""Lock, unlock and rekey of a patch embedding: a trained vision transformer then takes encrypted images.

A patch embedding is a linear map of each block's values, so what the cipher does to a block can be undone in its
weights beforehand, without the key being there when the model runs: the weights are permuted and negated with the
block's values, and what the negation and the channels' normalisation add is a constant, which goes into the embedding's
bias or, where it has none, into the position embeddings. The server needs no key and sees no plain image.

Permuted and negated weights keep all their bits, and so unlock bit for bit, where the channels' std are equal or values
stay in their channel (``permute='channel'``); otherwise they are scaled by the ratio of two std, in float64, and
rounded once. The constant is computed in float64 and rounded once.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from keyseg_mm.bind import derive_cipher, sign, verify
from keyseg_mm.errors import KeyMismatchError, LockError
from keyseg_mm.keys.key import SecretKey
from keyseg_mm.maps.patches import CHANNELS, PatchCipher
from keyseg_mm.patchplan import Embedding, PatchPlan, patch_plan_of
from keyseg_mm.stamp import SALT_BYTES


def cipher_of(key: SecretKey, plan: PatchPlan) -> PatchCipher:
    """The cipher of a plan's images.

    Raises:
        KeyMismatchError: the plan is of another key.
    """
    if plan.key_id != key.id:
        raise KeyMismatchError(
            f'this checkpoint takes images encrypted with key {plan.key_id}, and the key given is {key.id}'
        )
    return derive_cipher(key, plan.salt, plan.patch, plan.permute, plan.negate)


def lock_patches(
    state_dict: Mapping[str, Any], plan: PatchPlan, key: SecretKey, salt: bytes | None = None
) -> dict[str, Any]:
    """Plain to a model that takes images encrypted with the key.

    Args:
        state_dict: of the plain model.
        plan: from :func:`keyseg_mm.mm.embeddings.plan_patches`.
        key: the secret key.
        salt: 16 public bytes; by default fresh random ones.

    Returns:
        A new state_dict with the stamp; entries that are not changed are the same tensors as in ``state_dict``.

    Raises:
        LockError: the embedding is not as the plan says.
    """
    locked = dict(state_dict)
    lock_patches_in_place(locked, plan, key, salt)
    return locked


def unlock_patches(state_dict: Mapping[str, Any], key: SecretKey, check: bool = True) -> dict[str, Any]:
    """Back to the plain model.

    Args:
        state_dict: with its stamp.
        key: its key.
        check: check the MAC.

    Raises:
        KeyMismatchError: another key's.
        IntegrityError: the MAC does not fit.
        LockError: no such stamp, or the embedding is not as it says.
    """
    plain = dict(state_dict)
    unlock_patches_in_place(plain, key, check)
    return plain


def rekey_patches(
    state_dict: Mapping[str, Any], key: SecretKey, new_key: SecretKey, salt: bytes | None = None, check: bool = True
) -> dict[str, Any]:
    """From one key to another in one step; see :func:`unlock_patches` and :func:`lock_patches`."""
    changed = dict(state_dict)
    rekey_patches_in_place(changed, key, new_key, salt, check)
    return changed


def lock_patches_in_place(
    tensors: dict[str, Any], plan: PatchPlan, key: SecretKey, salt: bytes | None = None
) -> PatchPlan:
    """:func:`lock_patches` for a dict that is the caller's to lose."""
    plan = replace(plan, key_id=key.id, salt=_fresh(salt))
    fold(tensors, plan, cipher_of(key, plan))
    return _stamp(tensors, key, plan)


def unlock_patches_in_place(tensors: dict[str, Any], key: SecretKey, check: bool) -> None:
    """:func:`unlock_patches` for a dict that is the caller's to lose."""
    plan = _checked(tensors, key, check)
    fold(tensors, plan, cipher_of(key, plan).inverse())
    del tensors[plan.stamp_name]


def rekey_patches_in_place(
    tensors: dict[str, Any], key: SecretKey, new_key: SecretKey, salt: bytes | None, check: bool
) -> PatchPlan:
    """:func:`rekey_patches` for a dict that is the caller's to lose."""
    plan = _checked(tensors, key, check)
    new = replace(plan, key_id=new_key.id, salt=_fresh(salt))
    fold(tensors, plan, cipher_of(new_key, new).compose(cipher_of(key, plan).inverse()))
    del tensors[plan.stamp_name]
    return _stamp(tensors, new_key, new)


def fold(tensors: dict[str, Any], plan: PatchPlan, cipher: PatchCipher) -> None:
    """Make a model of plain images one of images that went through a cipher; all is checked before any is changed.

    Raises:
        LockError: a weight is missing or of another shape, or there is no room for the constant.
    """
    changed: dict[str, Tensor] = {}
    for embedding in plan.embeddings:
        weight, offset = _folded(_weight(tensors, plan, embedding), plan, cipher)
        changed[embedding.weight] = weight
        if bool(offset.any()):
            changed[embedding.offset] = _shifted(tensors, embedding, offset)
    tensors.update(changed)


def _folded(weight: Tensor, plan: PatchPlan, cipher: PatchCipher) -> tuple[Tensor, Tensor]:
    """The weight for encrypted blocks, in its own dtype, and the constant (D,) that comes with it, in float64."""
    flip = plan.order == 'bgr'
    mean, std = (np.array(values[::-1] if flip else values, dtype=np.float64) for values in (plan.mean, plan.std))
    table, gain, shift = (torch.from_numpy(np.ascontiguousarray(t)).to(weight.device) for t in cipher.terms(mean, std))
    red_first = weight.detach().double()
    red_first = red_first.flip(1) if flip else red_first
    moved = red_first.reshape(len(weight), -1)[:, table]
    new = (moved * gain).reshape(weight.shape)
    return (new.flip(1) if flip else new).to(weight.dtype).contiguous(), moved @ shift


def _weight(tensors: Mapping[str, Any], plan: PatchPlan, embedding: Embedding) -> Tensor:
    weight = tensors.get(embedding.weight)
    wanted = (CHANNELS, plan.patch, plan.patch)
    if not isinstance(weight, Tensor) or not weight.is_floating_point() or tuple(weight.shape[1:]) != wanted:
        raise LockError(
            f'{embedding.weight}: this checkpoint has no patch embedding of {plan.patch} x {plan.patch} pixels there; '
            'it is the wrong checkpoint for this model, or it was altered'
        )
    return weight


def _shifted(tensors: Mapping[str, Any], embedding: Embedding, offset: Tensor) -> Tensor:
    """The tensor that takes the constant, with it."""
    found = tensors.get(embedding.offset)
    if not embedding.offset or not isinstance(found, Tensor) or found.shape[-1:] != offset.shape:
        raise LockError(
            f'{embedding.weight}: this embedding has no bias, and no position embedding right behind it, to take the '
            'constant that negated values, and values that change channels, add; take --permute channel --no-negate'
        )
    new = found.detach().double()
    if embedding.skip:
        new[..., embedding.skip :, :] += offset
    else:
        new = new + offset
    return new.to(found.dtype)


def _checked(tensors: Mapping[str, Any], key: SecretKey, check: bool) -> PatchPlan:
    plan = patch_plan_of(tensors)
    if plan is None:
        raise LockError('this checkpoint takes plain images: it carries no stamp of an encrypted patch embedding')
    cipher_of(key, plan)  # refuses another key, before a MAC of it could only be called wrong
    if check:
        verify(key, plan, tensors)
    return plan


def _stamp(tensors: dict[str, Any], key: SecretKey, plan: PatchPlan) -> PatchPlan:
    plan = sign(key, plan, tensors)
    tensors[plan.stamp_name] = plan.to_tensor()
    return plan


def _fresh(salt: bytes | None) -> bytes:
    if salt is not None and len(salt) != SALT_BYTES:
        raise LockError(f'a salt is {SALT_BYTES} bytes ({2 * SALT_BYTES} hex digits)')
    return salt or os.urandom(SALT_BYTES)
