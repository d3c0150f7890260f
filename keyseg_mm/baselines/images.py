"""Models that are trained on encrypted images, by SHF, NP or FFX (MaungMaung and Kiya, arXiv 2105.14756; 2107.09362).

The pipeline step is :class:`keyseg_mm.mm.pipeline.EncryptImage`. Nothing in the weights is turned, so there is nothing
to lock, unlock or rekey: such a model learnt to read these images alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from keyseg_mm.bind import Bound
from keyseg_mm.entries import Entry, ImageEntry
from keyseg_mm.errors import LockError
from keyseg_mm.locking.plan import Plan
from keyseg_mm.locking.scheme import Scheme, register
from keyseg_mm.maps.keyspace import bits_of_images

_TRAINED = 'a model learns to read encrypted images as it is trained; put keyseg_mm.EncryptImage into its pipelines'


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
