"""Running segmentors of the host, and other modules from images to scores, with guesses at maps in their places."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from keyseg_mm.audit.engine.attack import Grant
from keyseg_mm.entries import EmbeddingEntry, ImageEntry
from keyseg_mm.errors import KeysegError
from keyseg_mm.maps import Map
from keyseg_mm.maps.carried import at_work
from keyseg_mm.maps.pixels import BlockCipher
from keyseg_mm.mm.embeddings import normalisation
from keyseg_mm.mm.inputs import metainfo
from keyseg_mm.model.sites import Site, module_of

#: What stands for an encryptor: a map, or anything else from (map, channel dimension) to a map.
Guess = Callable[[Tensor, int], Tensor]
_BATCH = 4  # photos through a model at once


def load_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load a whole state_dict.

    Raises:
        KeysegError: names or shapes differ.
    """
    try:
        nn.Module.load_state_dict(model, dict(weights), strict=True)
    except RuntimeError as error:
        raise KeysegError(f'these weights do not fit this {type(model).__name__}: {error}') from None


def logits(model: nn.Module, images: Tensor) -> Tensor:
    """The model's scores at the size of the images, which is that of the labels; gradients flow.

    Args:
        model: a segmentor of the host, or any module from images to scores.
        images: (B, 3, H, W), normalised.

    Returns:
        (B, classes, H, W).
    """
    host: Any = model
    size = tuple(images.shape[2:])
    if hasattr(model, 'inference') and hasattr(model, 'test_cfg'):
        scores: Tensor = host.inference(images, [metainfo(size) for _ in images])
    else:
        scores = host(images)
    if tuple(scores.shape[2:]) != size:
        scores = F.interpolate(scores, size, mode='bilinear', align_corners=False)
    return scores


def predict(model: nn.Module, images: Tensor) -> Tensor:
    """Label maps (N, H, W) that a model gives images (N, 3, H, W)."""
    model.eval()
    found = []
    with torch.no_grad():
        for batch in torch.split(images, _BATCH):
            scores = logits(model, batch)
            # a model with a single channel of scores is binary, and says yes above one half
            found.append(scores.argmax(1) if scores.shape[1] > 1 else (scores[:, 0].sigmoid() > 0.5).long())
    return torch.cat(found)


def place(model: nn.Module, site: Site, guess: Guess) -> None:
    """Apply a guess at one site of a model, as the true encryptor would: the attacker's own stand-in for it."""

    work = at_work(guess, site.point.side) if isinstance(guess, Map) else guess  # what is learnt is learnt as it works

    def change(x: Tensor) -> Tensor:
        return work(x, site.dim)

    module = module_of(model, site.point.name)
    if site.point.side == 'in':
        module.register_forward_pre_hook(lambda _, args, kw: site.enter(args, kw, change), with_kwargs=True)
    else:
        module.register_forward_hook(lambda _, args, output: site.leave(output, change))


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
    """What is public of the encrypted images that a model takes."""

    name: ClassVar[str] = 'images'
    entry: EmbeddingEntry | ImageEntry  # of the stamp
    pixels: Pixels  # how the model normalises

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
