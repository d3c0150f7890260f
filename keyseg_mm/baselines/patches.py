"""Models that take encrypted images: a trained vision transformer whose patch embedding is turned, or any, by training.

A patch embedding is a linear map of each block's values, so what the cipher does to a block can be undone in its
weights beforehand, without the key being there when the model runs: the weights are permuted and negated with the
block's values, and what the negation and the channels' normalisation add is a constant, which goes into the embedding's
bias or, where it has none, into the position embeddings. The server needs no key and sees no plain image. After
Nagamori, Iijima and Kiya, arXiv 2208.13135, and Kiya, Iijima and Nagamori, arXiv 2308.07612.

Permuted and negated weights keep all their bits, and so unlock bit for bit, where the channels' std are equal or values
stay in their channel (``permute='channel'``); otherwise they are scaled by the ratio of two std, in float64, and
rounded once. The constant is computed in float64 and rounded once.

Models that are trained on images encrypted by SHF, NP or FFX (MaungMaung and Kiya, arXiv 2105.14756; 2107.09362) learn
to read these alone: nothing in the weights is turned, so there is nothing to lock, unlock or rekey.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from keyseg_mm.bind import Bound, derive_cipher
from keyseg_mm.entries import EmbeddingEntry, Entry, ImageEntry
from keyseg_mm.errors import LockError
from keyseg_mm.keys.identity import Key
from keyseg_mm.keys.key import wrong_key
from keyseg_mm.locking.plan import Plan
from keyseg_mm.locking.proof import Bench, Proof, agreement
from keyseg_mm.locking.scheme import Scheme, register
from keyseg_mm.maps.keyspace import bits_of_images, bits_of_patches
from keyseg_mm.maps.pixels import COLOURS, TOP, BlockTables, check_steps
from keyseg_mm.model.passes import copied

_NOTHING = 1e-2  # a change of the output below it is none
_TRAINED = 'a model learns to read encrypted images as it is trained; put keyseg_mm.EncryptImage into its pipelines'


@register
class Patches(Scheme):
    """The patch embedding reads encrypted images; the model runs without a key."""

    name = 'patches'
    entry = EmbeddingEntry

    def plan(self, model: nn.Module, weights: Mapping[str, Any], **options: Any) -> Plan:
        """Options ``permute`` and ``negate``: see :meth:`keyseg_mm.maps.pixels.BlockTables.derive_patch`.

        Raises:
            LockError: something else than one kind of patch embedding reads the images, its patches overlap, or the
                config's windows or padding do not keep to its blocks.
        """
        return plan_patches(model, **options)

    def carry(
        self, tensors: dict[str, Any], prefix: str, before: Bound | None, after: Bound | None, own: bool = False
    ) -> None:
        both = _tables(after).compose(_tables(before).inverse())
        changed: dict[str, Tensor] = {}
        bound = after or before
        for entry in bound.stamp.embeddings if bound else ():
            weight, offset = _folded(_weight(tensors, prefix, entry), entry, both)
            changed[prefix + entry.weight] = weight
            if bool(offset.any()):
                changed[prefix + entry.offset] = _shifted(tensors, prefix, entry, offset)
        tensors.update(changed)

    def prove(
        self, bench: Bench, model: nn.Module, weights: Mapping[str, Any], plan: Plan, key: Key, salt: bytes
    ) -> Proof:
        """By the host's own way from 8-bit images on: encrypted with the key, plain, and encrypted with another key."""
        model = copied(model)  # the weights may be its own
        model.load_state_dict(weights, strict=False)
        plain = bench.run(model, whole=True)
        stamp, other, tensors = plan.to_stamp(key.id, salt), wrong_key('proof'), dict(weights)
        self.carry(tensors, '', None, Bound(key, stamp))
        model.load_state_dict(tensors, strict=False)
        right, wrong = (derive_cipher(k, salt, stamp.embeddings[0]) for k in (key, other))
        found = [agreement(plain, bench.run(model, cipher=c, whole=True)) for c in (right, None, wrong)]
        if not found[0].is_equal:
            raise LockError(
                f'on encrypted images the locked model is not the plain one (relative error {found[0].error:.1e}): '
                'something else reads the image or its embedding. Nothing was written'
            )
        if min(found[1].error, found[2].error) < _NOTHING:
            raise LockError('the locked model takes plain images too: nothing would be protected. Nothing was written')
        return Proof(plan, found[0], {'plain images': found[1], 'encrypted with another key': found[2]})

    def key_space(self, entry: Entry) -> float:
        if not isinstance(entry, EmbeddingEntry):
            raise TypeError
        return bits_of_patches(entry.patch, entry.permute, entry.negate)


def _tables(bound: Bound | None) -> BlockTables:
    """What is done to a block of the images, which all embeddings of a model read alike; nothing if plain."""
    if bound is None:
        return BlockTables()
    return derive_cipher(bound.key, bound.stamp.salt, bound.stamp.embeddings[0]).tables_of()


def plan_patches(model: nn.Module, permute: str = 'all', negate: bool = True) -> Plan:
    """Find out whether and how a model can be made to take encrypted images; see :meth:`Patches.plan`."""
    from keyseg_mm.mm.embeddings import find_embeddings, misaligned, normalisation, offset_of  # which need the host

    check_steps(permute, negate)
    layers = find_embeddings(model)
    patch = next(iter(layers.values())).kernel_size[0]
    if problems := misaligned(model, patch):
        raise LockError('; '.join(problems))
    order, mean, std = normalisation(model)
    entries = []
    for name, layer in layers.items():
        offset, skip = offset_of(model, name, layer)
        entries.append(EmbeddingEntry(f'{name}.weight', offset, skip, patch, permute, negate, order, mean, std))
    return Plan(Patches.name, tuple(entries))


def patch_of(model: nn.Module) -> int:
    """Side of a block in pixels, for a model that can be made to take encrypted images; errors as of :meth:`plan`."""
    return next(entry.patch for entry in plan_patches(model).entries if isinstance(entry, EmbeddingEntry))


def steps_of(entry: EmbeddingEntry) -> str:
    """What is done to a block, in words."""
    moves = {'all': 'values permuted across pixels and channels', 'channel': 'pixels permuted in each channel'}
    return ', '.join([*([moves[entry.permute]] if entry.permute in moves else []), *['some negated'] * entry.negate])


def _folded(weight: Tensor, entry: EmbeddingEntry, tables: BlockTables) -> tuple[Tensor, Tensor]:
    """The weight for encrypted blocks, in its own dtype, and the constant (D,) that comes with it, in float64."""
    flip = entry.order == 'bgr'
    mean, std = (np.array(values[::-1] if flip else values, dtype=np.float64) for values in (entry.mean, entry.std))
    order, gain, shift = (
        torch.from_numpy(t).to(weight.device) for t in terms(tables, len(weight[0].flatten()), mean, std)
    )
    red_first = weight.detach().double()
    red_first = red_first.flip(1) if flip else red_first
    values = red_first.permute(0, 2, 3, 1)  # a block's values as the cipher counts them, colour by colour
    moved = values.reshape(len(weight), -1)[:, order]
    new = (moved * gain).reshape(values.shape).permute(0, 3, 1, 2)
    return (new.flip(1) if flip else new).to(weight.dtype).contiguous(), moved @ shift


def terms(
    tables: BlockTables, size: int, mean: NDArray[np.float64], std: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """What a linear layer needs that reads encrypted values in the place of plain ones, both normalised.

    With plain values ``x[j] = (v[j] - mean[c]) / std[c]`` of colour c, and those of the encrypted block likewise,
    ``sum_j W[j] x[j] = sum_i W[order[i]] (gain[i] x'[i] + shift[i])``.

    Args:
        tables: of a cipher that negates.
        size: values of a block.
        mean, std: of the normalisation, shape (3,), in the order in which the cipher counts colours.

    Returns:
        ``order``, ``gain`` and ``shift``, each of shape (3 * patch * patch,). Where all std are equal, ``gain`` is +1
        or -1 exactly; where nothing is negated and no value changes colours, or all means are 127.5, ``shift`` is 0
        exactly.
    """
    order = np.arange(size) if tables.order is None else tables.order
    changed = np.zeros(size, dtype=bool) if tables.changed is None else tables.changed
    means, stds = np.tile(mean, size // COLOURS), np.tile(std, size // COLOURS)
    signs = np.where(changed, -1.0, 1.0)
    ratio = np.where(stds == stds[order], 1.0, stds / stds[order])
    shift = (TOP * changed + signs * means - means[order]) / stds[order]
    return np.ascontiguousarray(order), signs * ratio, shift


def _weight(tensors: Mapping[str, Any], prefix: str, entry: EmbeddingEntry) -> Tensor:
    weight = tensors.get(prefix + entry.weight)
    wanted = (COLOURS, entry.patch, entry.patch)
    if not isinstance(weight, Tensor) or not weight.is_floating_point() or tuple(weight.shape[1:]) != wanted:
        raise LockError(
            f'{prefix + entry.weight}: this checkpoint has no patch embedding of {entry.patch} x {entry.patch} pixels '
            'there; it is the wrong checkpoint for this model, or it was altered'
        )
    return weight


def _shifted(tensors: Mapping[str, Any], prefix: str, entry: EmbeddingEntry, offset: Tensor) -> Tensor:
    """The tensor that takes the constant, with it."""
    found = tensors.get(prefix + entry.offset)
    if not entry.offset or not isinstance(found, Tensor) or found.shape[-1:] != offset.shape:
        raise LockError(
            f'{prefix + entry.weight}: this embedding has no bias, and no position embedding right behind it, to take '
            'the constant that negated values, and values that change channels, add; take --permute channel --no-negate'
        )
    new = found.detach().double()
    if entry.skip:
        new[..., entry.skip :, :] += offset
    else:
        new = new + offset
    return new.to(found.dtype)


@register
class Images(Scheme):
    """The model reads encrypted images, since it was trained on such."""

    name = 'images'
    entry = ImageEntry

    def plan(self, model: nn.Module, weights: Mapping[str, Any], **options: Any) -> Plan:
        """Raises LockError."""
        raise LockError(_TRAINED)

    def carry(
        self, tensors: dict[str, Any], prefix: str, before: Bound | None, after: Bound | None, own: bool = False
    ) -> None:
        raise LockError(_TRAINED)

    def key_space(self, entry: Entry) -> float:
        if not isinstance(entry, ImageEntry):
            raise TypeError
        return bits_of_images(entry.method, entry.block)
