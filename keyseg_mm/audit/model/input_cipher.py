"""A model with something in front of it that changes its images: an encryption, or an attacker's stand-in for one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from keyseg_mm.audit.engine.attack import Grant
from keyseg_mm.audit.model.forward import logits
from keyseg_mm.entries import EmbeddingEntry, ImageEntry
from keyseg_mm.maps.pixels import BlockCipher
from keyseg_mm.mm.embeddings import normalisation


@dataclass(frozen=True)
class Pixels:
    """How normalised images and bytes go together; public, as the config is.

    Attributes:
        mean, std: of the normalisation, (3, 1, 1), in the order of the normalised channels.
        turned: the normalised channels come in the other order than the bytes.
    """

    mean: Tensor
    std: Tensor
    turned: bool

    @classmethod
    def of(cls, model: nn.Module) -> Pixels:
        """Those of a segmentor of the host.

        Raises:
            LockError: its data preprocessor does more to pixels than that.
        """
        order, mean, std = normalisation(model)
        return cls(torch.tensor(mean).view(-1, 1, 1), torch.tensor(std).view(-1, 1, 1), order == 'rgb')

    def values(self, images: Tensor) -> Tensor:
        """Normalised images (N, 3, H, W) as values from 0 to 255 in the order of the bytes; gradients flow."""
        values = images * self.std.to(images) + self.mean.to(images)
        return values.flip(1) if self.turned else values

    def normalised(self, values: Tensor) -> Tensor:
        """Undo :meth:`values`."""
        images = values.flip(1) if self.turned else values
        return (images - self.mean.to(images)) / self.std.to(images)


@dataclass(frozen=True)
class ImageEncryption(Grant):
    """What is public of the encrypted images that a model takes.

    Attributes:
        entry: of the stamp.
        pixels: how the model normalises.
    """

    name: ClassVar[str] = 'images'
    entry: EmbeddingEntry | ImageEntry
    pixels: Pixels

    @property
    def block(self) -> int:
        """Side of a block, in pixels."""
        return self.entry.block if isinstance(self.entry, ImageEntry) else self.entry.patch

    @property
    def method(self) -> str:
        """Name of the encryption."""
        return self.entry.method if isinstance(self.entry, ImageEntry) else 'patches'


def encryption_by(cipher: BlockCipher, images: ImageEncryption) -> Callable[[Tensor], Tensor]:
    """A cipher as a function of normalised images, rounded to bytes as files and cameras have them."""
    turned = isinstance(images.entry, EmbeddingEntry)  # its images have red first, those of the host blue

    def run(normalised: Tensor) -> Tensor:
        values = images.pixels.values(normalised).round().clamp(0, 255).byte()
        plain = (values.flip(1) if turned else values).permute(0, 2, 3, 1).cpu().numpy()
        done = torch.from_numpy(np.ascontiguousarray(cipher.encrypt(plain))).permute(0, 3, 1, 2)
        return images.pixels.normalised((done.flip(1) if turned else done).to(normalised))

    return run


class WithInput(nn.Module):
    """A segmentor with a change of its images in front: ``scores(change(images))``.

    Args:
        model: the segmentor.
        change: from normalised images (N, 3, H, W) to such. A module's parameters are part of this one's.
    """

    def __init__(self, model: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.change = model, change

    def forward(self, images: Tensor) -> Tensor:
        """Scores (N, classes, H, W)."""
        return logits(self.model, self.change(images))
