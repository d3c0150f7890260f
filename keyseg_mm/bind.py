"""Where key and stamp meet: the one place where a public record and a key give secrets.

A stamp says where and how, and its envelope holds the model's feature secret for each recipient; the holder of the key
that named the stamp derives it too. Every map comes from an HKDF subkey of that secret, under a label with a version.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from keyseg_mm.entries import SALT_BYTES, EmbeddingEntry, ImageEntry, MapEntry, TensorEntry, describe
from keyseg_mm.errors import LockError, StampError, TransformError
from keyseg_mm.keys.derive import KeyStream, sha256
from keyseg_mm.keys.key import Material, SecretKey, licensee_name
from keyseg_mm.keys.secret import unseen
from keyseg_mm.maps import TRANSFORMS, ChannelMap, Map
from keyseg_mm.maps.carried import Carried
from keyseg_mm.maps.ff1 import byte_map
from keyseg_mm.maps.order import ORDERS, ValueOrder, WeightMap, raw, sorted_order, why_not
from keyseg_mm.maps.pixels import COLOURS, PATCH, BlockCipher, BlockTables, Bytes, check_method, check_steps
from keyseg_mm.model.points import Point
from keyseg_mm.stamp import Stamp, is_stamp, padded, stamps_of


@dataclass(frozen=True)
class Bound:
    """A key and a stamp together: what was, or is to be, done to a model's weights."""

    key: Material
    stamp: Stamp

    def weight_maps(self) -> dict[str, WeightMap]:
        """The secret map that each known weight carries, by name: that of its input, after that of the map it reads."""
        refuse_unknown(self.stamp)
        maps: dict[str, Carried] = {}
        for entry in sorted((e for e in self.stamp.maps if e.weights), key=_reading_order):
            found = Carried(derive_channel_map(self.key, self.stamp.salt, entry), entry.along)
            maps.update({name: found.compose(maps[name]) if name in maps else found for name in entry.weights})
        return {**maps, **self.value_orders()}

    def value_orders(self) -> dict[str, ValueOrder]:
        """The secret order of each tensor that is encrypted itself, by its names."""
        orders: dict[str, ValueOrder] = {}
        for entry in self.stamp.tensors:
            order = ValueOrder(entry.count, partial(derive_order, self.key, self.stamp.salt, entry))
            orders.update(dict.fromkeys(entry.names, order))
        return orders


def refuse_unknown(stamp: Stamp) -> None:
    """Refuse a stamp that names a map or an order which nobody here knows.

    Raises:
        StampError: with its name.
    """
    unknown = [entry.transform for entry in stamp.maps if entry.transform['type'] not in TRANSFORMS]
    unknown += [entry.transform for entry in stamp.tensors if entry.transform['type'] not in ORDERS]
    if unknown:
        names = ', '.join(sorted(set(map(describe, unknown))))
        raise StampError(f'its stamp names {names}, not known here: install a newer keyseg_mm')


@unseen
def derive_map(key: Material, salt: bytes, entry: MapEntry) -> Map:
    """The secret map of a stamp's entry: one HKDF subkey per salt, point, channels and transform.

    Raises:
        StampError: the entry names a transform that nobody here knows.
    """
    if entry.transform['type'] not in TRANSFORMS:
        raise StampError(f'its stamp names {describe(entry.transform)}, not known here: install a newer keyseg_mm')
    spec = dict(entry.transform)
    return TRANSFORMS[spec.pop('type')].derive(KeyStream(map_subkey(key, salt, entry)), entry.channels, **spec)


def map_subkey(key: Material, salt: bytes, entry: MapEntry) -> bytes:
    """What the keystream of an entry's map is of."""
    return key.features(salt).subkey('keyseg_mm/subkey/v1', [entry.point, entry.channels, entry.transform], salt)


def derive_channel_map(key: Material, salt: bytes, entry: MapEntry) -> ChannelMap:
    """:func:`derive_map` where weights are to carry the map.

    Raises:
        LockError: it is none that weights can carry.
    """
    found = derive_map(key, salt, entry)
    if not isinstance(found, ChannelMap):
        raise LockError(f'{entry}: no weights can carry a {type(found).__name__}')
    return found


@unseen
def derive_order(key: Material, salt: bytes, entry: TensorEntry) -> NDArray[Any]:
    """The secret order of a tensor's values: one HKDF subkey per salt, name, number of values and transform."""
    subkey = key.features(salt).subkey('keyseg_mm/tensor/v1', [entry.names[0], entry.count, entry.transform], salt)
    return sorted_order(KeyStream(subkey), entry.count)


@unseen
def derive_cipher(key: Material, salt: bytes, entry: EmbeddingEntry | ImageEntry) -> BlockCipher:
    """The secret cipher of images: one HKDF subkey per salt, block, steps and number of colours.

    Args:
        key: the secret key.
        salt: of the model; an :class:`ImageEntry` brings its own, which may be empty.
        entry: how images are encrypted.
    """
    if isinstance(entry, EmbeddingEntry):
        return derive_patches(key, salt, entry.patch, entry.permute, entry.negate)
    own = bytes.fromhex(entry.salt)
    values: Callable[[], Bytes] = lambda: byte_map(  # noqa: E731
        key.subkey('keyseg_mm/image-bytes/v1', [entry.method, entry.block], own)
    )

    def tables(colours: int) -> BlockTables:
        size = entry.block**2 * colours
        stream = KeyStream(key.subkey('keyseg_mm/image-order/v1', [entry.method, entry.block, size], own))
        return BlockTables.derive(stream, size, entry.method, values)

    return BlockCipher(entry.block, tables)


def derive_patches(key: Material, salt: bytes, patch: int, permute: str = 'all', negate: bool = True) -> BlockCipher:
    """The secret cipher of images for a patch embedding: one HKDF subkey per salt, patch size and steps.

    Args:
        key: the secret key.
        salt: of the model.
        patch, permute, negate: see :meth:`keyseg_mm.maps.pixels.BlockTables.derive_patch`.

    Raises:
        TransformError: a bad value, or nothing left to do.
    """
    check_method(PATCH, patch)
    check_steps(permute, negate)
    stream = KeyStream(key.features(salt).subkey('keyseg_mm/patches/v1', [patch, permute, negate], salt))

    @unseen
    def tables(colours: int) -> BlockTables:
        if colours != COLOURS:
            raise TransformError(f'{PATCH} takes images of {COLOURS} colours, and met {colours}')
        return BlockTables.derive_patch(stream, patch, permute, negate)

    return BlockCipher(patch, tables, whole=True)


def licensee_salt(master: SecretKey, name: str, tensors: Mapping[str, Any], encrypted: bool | None = None) -> bytes:
    """The public salt of a licensee's copy, 16 bytes by HKDF-SHA256 (RFC 5869); it tells nothing of the key.

    It depends on the model by what locking leaves as it is (biases, norms and their statistics), so that one licensee
    gets other tables for each release, and the owner finds the salt again from the plain model or any protected one.
    Where the weights are encrypted themselves, that is their values without their order.

    Args:
        master: the master key.
        name: of the licensee.
        tensors: state_dict of the model, plain or protected.
        encrypted: whether their copy has encrypted weights; by default, whether ``tensors`` are such by their stamp.
    """
    if encrypted is None:
        encrypted = any(stamp.tensors for stamp in stamps_of(tensors).values())
    untouched = {n: t for n, t in tensors.items() if isinstance(t, Tensor) and t.dim() < 2 and not is_stamp(n)}
    if encrypted:
        untouched = {n: raw(t).sort().values if not why_not(t) else t for n, t in untouched.items()}
    digests = [[n, digest(untouched[n]).hex()] for n in sorted(untouched)]
    label = f'keyseg_mm/licensee-salt/v{2 if encrypted else 1}'
    return master.subkey(label, [licensee_name(name), digests], b'')[:SALT_BYTES]


def digest(tensor: Tensor) -> bytes:
    """SHA-256 of a small tensor's values, in the order of its indices and in little-endian bytes."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return sha256(flat.view(torch.uint8).numpy().data if flat.numel() else b'')


def stamp_tensor(stamp: Stamp, room: int = 1) -> Tensor:
    """The stamp as a one-dimensional uint8 tensor, as it travels in a state_dict.

    Args:
        stamp: the stamp.
        room: the length becomes a multiple of so many bytes, by blanks at the end, and half of them at least.
    """
    return torch.frombuffer(bytearray(padded(stamp, room)), dtype=torch.uint8)


def _reading_order(entry: MapEntry) -> tuple[bool, int]:
    """A map that leaves a module is met before those that enter layers, an outer layer's before an inner one's."""
    point = Point.parse(entry.point)
    return point.side != 'out', point.name.count('.')
