"""The public stamp of a model that takes encrypted images.

It says what was done to the patch embedding, and with it the client knows how to encrypt: patch size, steps, salt and
key id. It travels in the state_dict as the stamp of :mod:`keyseg_mm.stamp` does, under a name that tells a host without
this package, and without a key, what the model wants.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from keyseg_mm.errors import StampError, TransformError
from keyseg_mm.maps.patches import CHANNELS, check_steps, key_space
from keyseg_mm.stamp import DAMAGED, PATCH_FORMAT, SALT_BYTES, STAMP_PREFIX, Stamped, text_of

VERSION = 1
_PREFIX = STAMP_PREFIX + '_model_takes_images_encrypted_with_key_'
ORDERS = ('rgb', 'bgr')


@dataclass(frozen=True)
class Embedding:
    """One patch embedding.

    Attributes:
        weight: name in the state_dict of its weight (D, 3, p, p).
        offset: name of the tensor (..., D) that takes the constant that the encryption adds; empty where there is none.
        skip: how many of its rows, those of tokens that are no patches, do not take it.
    """

    weight: str
    offset: str = ''
    skip: int = 0


@dataclass(frozen=True)
class PatchPlan(Stamped):
    """What was done to a model's patch embedding, and how its images are encrypted; all public.

    Attributes:
        patch: side of a block, in pixels.
        permute, negate: see :meth:`keyseg_mm.maps.patches.PatchCipher.derive`.
        order: in which order the model's channels come, ``'rgb'`` or ``'bgr'``.
        mean, std: of the model's normalisation, in that order.
        embeddings: where it was done.
        key_id, salt: of the key and of this model; empty in a plan that is not carried out yet.
        mac: keyed MAC over the rest of the stamp and the weights it came with, in hex.
    """

    patch: int
    permute: str
    negate: bool
    order: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    embeddings: tuple[Embedding, ...]
    key_id: str = ''
    salt: bytes = b''
    mac: str = field(default='', compare=False)

    @property
    def stamp_name(self) -> str:
        """Name of the stamp's entry in a state_dict."""
        return _PREFIX + self.key_id

    @property
    def places(self) -> int:
        """At how many places the model carries its key."""
        return len(self.embeddings)

    @property
    def key_space(self) -> float:
        """log2 of the number of ciphers that a key may choose from."""
        return key_space(self.patch, self.permute, self.negate)

    @property
    def steps(self) -> str:
        """What is done to a block, in words."""
        moves = {'all': 'values permuted across pixels and channels', 'channel': 'pixels permuted in each channel'}
        return ', '.join([*([moves[self.permute]] if self.permute in moves else []), *['some negated'] * self.negate])

    def to_json(self) -> str:
        document: dict[str, Any] = {'format': PATCH_FORMAT, 'version': VERSION, 'key_id': self.key_id}
        document.update(salt=self.salt.hex(), patch=self.patch, permute=self.permute, negate=self.negate)
        document.update(order=self.order, mean=list(self.mean), std=list(self.std))
        document['embeddings'] = [{'weight': e.weight, 'offset': e.offset, 'skip': e.skip} for e in self.embeddings]
        if self.mac:
            document['mac'] = self.mac
        return json.dumps(document, separators=(',', ':'))

    @classmethod
    def from_tensor(cls, tensor: Any) -> PatchPlan:
        """Read a stamp.

        Raises:
            StampError: damaged, or of another version.
        """
        try:
            document = json.loads(text_of(tensor))
            if document['format'] != PATCH_FORMAT:
                raise ValueError
            if document['version'] != VERSION:
                raise StampError(
                    f'this stamp has version {document["version"]!r}; this release reads version {VERSION}: '
                    'install a newer keyseg_mm'
                )
            return _plan(document)
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, TransformError):
            raise StampError(DAMAGED) from None


def patch_plan_of(state_dict: Mapping[str, Any]) -> PatchPlan | None:
    """The stamp of a model that takes encrypted images; None where there is none.

    Raises:
        StampError: it is damaged, is not the one that its name says, or there are two.
    """
    names = [name for name in state_dict if name.startswith(_PREFIX)]
    if not names:
        return None
    plan = PatchPlan.from_tensor(state_dict[names[0]])
    if len(names) > 1 or plan.stamp_name != names[0]:
        raise StampError(DAMAGED)
    return plan


def _plan(document: dict[str, Any]) -> PatchPlan:
    """A plan from its JSON; raises whatever comes for a damaged one."""
    patch, permute, negate = document['patch'], document['permute'], document['negate']
    check_steps(patch, permute, negate)
    mean, std = (tuple(map(float, document[name])) for name in ('mean', 'std'))
    salt, mac, key_id, order = (
        bytes.fromhex(document['salt']),
        document.get('mac', ''),
        document['key_id'],
        document['order'],
    )
    bytes.fromhex(mac)
    embeddings = tuple(Embedding(e['weight'], e['offset'], e['skip']) for e in document['embeddings'])
    whole = (
        len(mean) == len(std) == CHANNELS
        and all(map(math.isfinite, (*mean, *std)))
        and all(value > 0 for value in std)
        and len(salt) == SALT_BYTES
        and isinstance(key_id, str)
        and order in ORDERS
        and embeddings
        and all(isinstance(e.weight, str) and isinstance(e.offset, str) and e.skip in (0, 1, 2) for e in embeddings)
    )
    if not whole:
        raise ValueError
    return PatchPlan(patch, permute, negate, order, mean, std, embeddings, key_id, salt, mac)
