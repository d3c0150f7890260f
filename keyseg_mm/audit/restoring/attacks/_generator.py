"""A small generator of photos, and the search for the latents whose photos look encrypted as the images do."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from keyseg_mm.audit.attack import Progress
from keyseg_mm.audit.case import Clock
from keyseg_mm.audit.restoring.attacks._network import as_tensor, block_values, cropped, unlikeness
from keyseg_mm.audit.restoring.scheme import COLOURS, Images, Scheme

_STRIDE = 16  # pixels of a latent's side
_LATENTS = 24  # channels of a latent
_WIDTH = 48
_NOISE = 0.1  # on latents in training, so that those near by give photos too
_RATE, _LATENT_RATE, _PLACE_RATE = 2e-3, 0.05, 0.2
_PRIOR = 1e-3  # weight of the latents' size
_TRAINING = 0.5  # share of the budget
_BATCH = 8  # images fitted at a time
#: What an untouched place must fit better than to count as untouched: about what a random byte is off.
_STRANGER = 0.15


class Generator(nn.Module):
    """A convolutional autoencoder with noise on its latents; the decoder is the generator."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(4), _conv(16 * COLOURS, _WIDTH), _conv(_WIDTH, _WIDTH, 2), _conv(_WIDTH, _WIDTH, 2),
            nn.Conv2d(_WIDTH, _LATENTS, 1),
        )  # fmt: skip
        self.decoder = nn.Sequential(
            _conv(_LATENTS, _WIDTH), nn.Upsample(scale_factor=2.0), _conv(_WIDTH, _WIDTH),
            nn.Upsample(scale_factor=2.0), _conv(_WIDTH, _WIDTH), nn.Conv2d(_WIDTH, 16 * COLOURS, 3, padding=1),
            nn.PixelShuffle(4),
        )  # fmt: skip

    def encode(self, images: Tensor) -> Tensor:
        """Latents (N, C, H / 16, W / 16) of images (N, 3, H, W), whose sides are filled up."""
        high, wide = images.shape[2:]
        filled = F.pad(images, (0, -wide % _STRIDE, 0, -high % _STRIDE), mode='replicate')
        found: Tensor = self.encoder(filled - 0.5)
        return found

    def forward(self, latents: Tensor) -> Tensor:
        """Photos of latents, about 0 to 1."""
        found: Tensor = self.decoder(latents) + 0.5
        return found


def _conv(a: int, b: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(a, b, 3, padding=1, stride=stride), nn.GELU())


def trained_generator(photos: Images, block: int, clock: Clock, seed: int, progress: Progress) -> Generator:
    """A generator of photos like these, trained with half of the budget."""
    torch.manual_seed(seed)
    net, rng = Generator(), np.random.default_rng(seed)
    optimizer = torch.optim.Adam(net.parameters(), lr=_RATE)
    while clock.share < _TRAINING and clock.tick():
        (plain,) = cropped((photos,), block, rng)
        x = as_tensor(plain)
        latents = net.encode(x)
        made = net(latents + _NOISE * torch.randn_like(latents))[..., : x.shape[2], : x.shape[3]]
        loss = unlikeness(made, x) + _PRIOR * (latents**2).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        progress(clock.share, f'generator, step {clock.steps}, loss {loss.item():.3f}')
    return net.eval().requires_grad_(False)


@dataclass
class Fit:
    """What the search came to.

    Attributes:
        images: the generated photos, (N, 3, H, W).
        kept: for each place of a block, 0 to 1, how sure it is that it holds its plain value; (3 M M,).
    """

    images: Tensor
    kept: Tensor


def fitted(net: Generator, encrypted: Images, first: Images, scheme: Scheme, clock: Clock, progress: Progress) -> Fit:
    """Find latents by gradient, and with them which places of a block are untouched, until the budget ends.

    Args:
        net: the generator.
        encrypted: the images under attack.
        first: what their latents start from.
        scheme: how they are encrypted.
        clock: of the budget; what is left of it is used.
        progress: told how far it is.
    """
    target = as_tensor(encrypted)
    high, wide = target.shape[2:]
    with torch.no_grad():
        latents = net.encode(as_tensor(first))
    latents.requires_grad_(True)
    places = torch.zeros(scheme.values, requires_grad=True)
    groups = [{'params': [latents], 'lr': _LATENT_RATE}, {'params': [places], 'lr': _PLACE_RATE}]
    optimizer, turn = torch.optim.Adam(groups), 0
    while clock.tick():
        chosen = torch.arange(turn * _BATCH, (turn + 1) * _BATCH) % len(target)
        turn += 1
        made = net(latents[chosen])[..., :high, :wide]
        loss = _mismatch(made, target[chosen], scheme, places.sigmoid()) + _PRIOR * (latents[chosen] ** 2).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        progress(clock.share, f'latents, step {turn}, mismatch {loss.item():.3f}')
    with torch.no_grad():
        images = torch.cat([net(latents[i : i + 1])[..., :high, :wide] for i in range(len(target))])
    return Fit(images.clamp(0, 1), places.detach().sigmoid())


def _mismatch(made: Tensor, target: Tensor, scheme: Scheme, kept: Tensor) -> Tensor:
    """How unlike generated images are to encrypted ones in what the key leaves, or under the likeliest map."""
    a, b = block_values(made, scheme.block), block_values(target, scheme.block)
    if scheme.moves != 'none':
        if 'negated' in scheme.changes:
            a, b = (2 * a - 1).abs(), (2 * b - 1).abs()
        if scheme.moves == 'channel':  # block values come colour by colour
            a, b = (x.reshape(len(x), COLOURS, -1, *x.shape[2:]) for x in (a, b))
        ranked = 2 if scheme.moves == 'channel' else 1
        return torch.mean((a.sort(ranked).values - b.sort(ranked).values).abs())
    as_it_is = (a - b).abs().mean((0, 2, 3))
    other = torch.full_like(as_it_is, _STRANGER)
    if 'negated' in scheme.changes:
        other = (a - (1 - b)).abs().mean((0, 2, 3))
    return (kept * as_it_is + (1 - kept) * other).mean()


def by_place(kept: Tensor, scheme: Scheme) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Figures of places, from colour by colour to the order of :mod:`keyseg_mm.audit.restoring.scheme`."""
    found: np.ndarray[tuple[int, ...], np.dtype[np.float32]] = (
        kept.reshape(COLOURS, scheme.block**2).T.reshape(-1).numpy().astype(np.float32)
    )
    return found
