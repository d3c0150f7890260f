"""Where key and stamp meet: the one place where a public record and a key give secrets.

A stamp says where and how; with a key it gives the secret maps, and the MAC by which the key's holder knows the weights
again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from keyseg_mm import mac
from keyseg_mm.errors import IntegrityError, LockError
from keyseg_mm.images.cipher import ImageCipher
from keyseg_mm.images.ff1 import byte_map
from keyseg_mm.images.plan import ImagePlan
from keyseg_mm.keys.derive import KeyStream, order, permutation
from keyseg_mm.keys.key import SecretKey
from keyseg_mm.maps import TRANSFORMS, ChannelMap, Map
from keyseg_mm.maps.patches import PatchCipher
from keyseg_mm.patchplan import PatchPlan
from keyseg_mm.stamp import Entry, Plan, TensorEntry, is_stamp

_Stamped = TypeVar('_Stamped', Plan, PatchPlan)


def derive_map(key: SecretKey, salt: bytes, entry: Entry) -> Map:
    """The secret transform of a plan's entry: one HKDF subkey per salt, point, channels and transform."""
    subkey = key.subkey('keyseg_mm/subkey/v1', [entry.point, entry.channels, entry.transform], salt)
    spec = dict(entry.transform)
    return TRANSFORMS[spec.pop('type')].derive(KeyStream(subkey), entry.channels, **spec)


def derive_channel_map(key: SecretKey, salt: bytes, entry: Entry) -> ChannelMap:
    """:func:`derive_map` where weights are to carry the transform.

    Raises:
        LockError: it is none that weights can carry.
    """
    found = derive_map(key, salt, entry)
    if not isinstance(found, ChannelMap):
        raise LockError(f'{entry}: no weights can carry a {type(found).__name__}')
    return found


def derive_image_cipher(key: SecretKey, plan: ImagePlan) -> ImageCipher:
    """The secret encryption of images by a plan; the plan's key id is the caller's to check."""
    fields: list[object] = [plan.method, plan.block]

    def table(size: int) -> Any:
        subkey = key.subkey('keyseg_mm/image-order/v1', [*fields, size], plan.salt)
        return permutation(KeyStream(subkey), size)

    return ImageCipher(plan, table, lambda: byte_map(key.subkey('keyseg_mm/image-bytes/v1', fields, plan.salt)))


def derive_order(key: SecretKey, salt: bytes, tensor: TensorEntry) -> NDArray[np.int64]:
    """The secret order of a tensor's values: one HKDF subkey per salt, name, number of values and transform."""
    subkey = key.subkey('keyseg_mm/tensor/v1', [tensor.names[0], tensor.count, tensor.transform], salt)
    return order(KeyStream(subkey), tensor.count)


def derive_cipher(key: SecretKey, salt: bytes, patch: int, permute: str = 'all', negate: bool = True) -> PatchCipher:
    """The secret cipher of images: one HKDF subkey per salt, patch size and steps.

    Args:
        key: the secret key.
        salt: of the model.
        patch, permute, negate: see :meth:`keyseg_mm.maps.patches.PatchCipher.derive`.
    """
    subkey = key.subkey('keyseg_mm/patches/v1', [patch, permute, negate], salt)
    return PatchCipher.derive(KeyStream(subkey), patch, permute, negate)


def sign(key: SecretKey, plan: _Stamped, tensors: Mapping[str, Any]) -> _Stamped:
    """The plan with its MAC over a state_dict; stamps and what is no tensor do not count."""
    return replace(plan, mac=mac.weights_mac(*_signed(key, plan, tensors)).hex())


def verify(key: SecretKey, plan: Plan | PatchPlan, tensors: Mapping[str, Any]) -> None:
    """Check a plan's MAC.

    Raises:
        IntegrityError: it is missing, or weights or stamp were altered after a holder of the key wrote them.
    """
    if not plan.mac:
        raise IntegrityError(
            'this checkpoint carries a stamp without a MAC: it was altered, or not written by keyseg_mm; take a copy '
            'from where it was made. To run it all the same: protection.verify=False, or --no-verify'
        )
    if not mac.fits(*_signed(key, plan, tensors), bytes.fromhex(plan.mac)):
        raise IntegrityError(
            f'this checkpoint was altered after the holder of key {plan.key_id} wrote it: its weights or its stamp do '
            'not fit its MAC; take a copy from where it was made. To run it all the same (you cast it to another '
            'dtype yourself, say): protection.verify=False, or --no-verify'
        )


def _signed(key: SecretKey, plan: Plan | PatchPlan, tensors: Mapping[str, Any]) -> tuple[bytes, str, dict[str, Tensor]]:
    """What a MAC is made of."""
    mac_key = key.subkey('keyseg_mm/mac/v1', [], plan.salt)
    covered = {name: t for name, t in tensors.items() if isinstance(t, Tensor) and not is_stamp(name)}
    return mac_key, replace(plan, mac='').to_json(), covered
