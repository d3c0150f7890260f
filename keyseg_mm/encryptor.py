"""Feature encryptors: where key and plan meet.

A plan is public and says where and how; with a key it gives the secret transforms, and the MAC by which the key's
holder knows the weights again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from keyseg_mm import integrity
from keyseg_mm.derive import KeyStream, order, permutation
from keyseg_mm.errors import IntegrityError, LockError
from keyseg_mm.forward import refuse_export, replace_tensor
from keyseg_mm.images.cipher import ImageCipher
from keyseg_mm.images.ff1 import byte_map
from keyseg_mm.images.plan import ImagePlan
from keyseg_mm.key import SecretKey
from keyseg_mm.patchplan import PatchPlan
from keyseg_mm.plan import Entry, Plan, TensorEntry, is_stamp
from keyseg_mm.points import Site, module_of
from keyseg_mm.secret import Secret
from keyseg_mm.transforms import TRANSFORMS, ChannelMap, FeatureTransform
from keyseg_mm.transforms.patches import PatchCipher

_Stamped = TypeVar('_Stamped', Plan, PatchPlan)


def derive_map(key: SecretKey, salt: bytes, entry: Entry) -> FeatureTransform:
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
        patch, permute, negate: see :meth:`keyseg_mm.transforms.patches.PatchCipher.derive`.
    """
    subkey = key.subkey('keyseg_mm/patches/v1', [patch, permute, negate], salt)
    return PatchCipher.derive(KeyStream(subkey), patch, permute, negate)


def sign(key: SecretKey, plan: _Stamped, tensors: Mapping[str, Any]) -> _Stamped:
    """The plan with its MAC over a state_dict; stamps and what is no tensor do not count."""
    return replace(plan, mac=integrity.weights_mac(*_signed(key, plan, tensors)).hex())


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
    if not integrity.fits(*_signed(key, plan, tensors), bytes.fromhex(plan.mac)):
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


class FeatureEncryptor(Secret):
    """The transform at one site, as a forward hook. Its tables are derived at the first call and kept.

    Attributes:
        site: where it works.
        calls: how often it encrypted a feature map.
    """

    __slots__ = ('site', 'entry', 'calls', '_derive', '_map')

    def __init__(self, site: Site, entry: Entry, derive: Callable[[Entry], FeatureTransform]) -> None:
        self.site, self.entry, self.calls = site, entry, 0
        self._derive = derive
        self._map: FeatureTransform | None = None

    @property
    def public_id(self) -> str:
        return str(self.entry)

    @property
    def map(self) -> FeatureTransform:
        """The secret transform."""
        if self._map is None:
            self._map = self._derive(self.entry)
        return self._map

    def is_of(self, derive: Callable[[Entry], FeatureTransform]) -> bool:
        """Whether its tables come from this method of a protection."""
        return self._derive == derive

    def forget(self) -> None:
        """Drop the tables: the salt has changed."""
        self._map = None

    def on_output(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Forward hook of an ``out:`` point."""
        index = self.site.index_in(output)
        if index is None:  # this pass hands on fewer maps, and not this one
            return output
        return self._encrypt(output) if isinstance(output, Tensor) else replace_tensor(output, index, self._encrypt)

    def on_input(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Forward pre-hook of an ``in:`` point."""
        return (self._encrypt(args[0]), *args[1:])

    def _encrypt(self, x: Tensor) -> Tensor:
        refuse_export(x)
        self.calls += 1
        return self.map(x, self.site.dim)


def hook_encryptors(model: nn.Module, encryptors: Sequence[FeatureEncryptor]) -> None:
    """Hook encryptors to their modules, all or none."""
    modules = [module_of(model, encryptor.site.point.name) for encryptor in encryptors]
    for encryptor, module in zip(encryptors, modules):
        if encryptor.site.point.side == 'out':
            module.register_forward_hook(encryptor.on_output)
        else:
            module.register_forward_pre_hook(encryptor.on_input)
