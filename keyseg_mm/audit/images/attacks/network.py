"""A small network that restores images of keys it has never seen."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from keyseg_mm.audit.engine.budget import Progress
from keyseg_mm.audit.images.attack import ImageAttack, ImageCase, OwnPhotos, Restored, register
from keyseg_mm.audit.images.attacks.statistics import as_bytes
from keyseg_mm.audit.images.scheme import Images, drawn_map
from keyseg_mm.maps.pixels import COLOURS

_WIDTHS = (24, 48, 64, 64)  # channels at half the size, a quarter, and so on
_QUANTILES = 9  # of a block's values, its least and largest included
_BATCH = 4
_PIXELS = 112 * 112  # of a crop, at most: a step's cost is then the same for images of all sizes
_RATE = 2e-3
_SSIM = 0.3  # weight of what is not SSIM in the loss, beside the mean absolute error


@register
class InverseNetwork(ImageAttack):
    """Attackers encrypt their own photos, with another cipher of their own in each step, and train a network on them.

    It learns what all keys have in common: what the statistics of a block and of those around say of the plain image.
    """

    name, title = 'inverse-network', 'an inverse network, trained under other keys'
    needs = frozenset({OwnPhotos})
    source = 'inverse transformation network attack, as in Sirichotedumrong and Kiya, arXiv 2010.06198'
    cost = 'a training of a small U-Net'

    def run(self, case: ImageCase, progress: Progress) -> Restored:
        """Train until the budget ends, the rate falling to zero by then, and restore."""
        public = case[OwnPhotos].images
        torch.manual_seed(case.seed)
        clock, net, rng = case.budget.clock(), _Net(case.scheme.block), np.random.default_rng(case.seed)
        optimizer = torch.optim.Adam(net.parameters(), lr=_RATE)
        while clock.tick():
            for group in optimizer.param_groups:
                group['lr'] = _RATE * (1 - 0.99 * clock.share)
            plain = _cropped(public, case.scheme.block, rng)
            encrypted = drawn_map(case.scheme, rng).encrypt(plain)
            loss = _unlikeness(net(_as_tensor(encrypted)), _as_tensor(plain))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            progress(clock.share, f'step {clock.steps}, loss {loss.item():.3f}')
        with torch.no_grad():
            made = torch.cat([net.eval()(_as_tensor(image[None])) for image in case.encrypted])
        images = as_bytes(255 * made.permute(0, 2, 3, 1).numpy())
        return Restored(images, exhausted=clock.steps < case.budget.steps)


class _Net(nn.Module):
    """From an encrypted image to a plain one, as a small U-Net.

    It sees the values, the folded values, and of each block what no permutation changes: the quantiles of its values.

    Args:
        block: side of a block, in pixels.
    """

    def __init__(self, block: int) -> None:
        super().__init__()
        self.block = block
        self.enter = nn.Conv2d(4 * (2 * COLOURS + _QUANTILES), _WIDTHS[0], 3, padding=1)
        pairs = list(zip(_WIDTHS, _WIDTHS[1:]))
        self.down = nn.ModuleList(_layers(a, b, stride=2) for a, b in pairs)
        self.up = nn.ModuleList(_layers(a + b, a) for a, b in reversed(pairs))
        self.leave = nn.Conv2d(_WIDTHS[0], 4 * COLOURS, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """Encrypted (N, 3, H, W) to plain, both about 0 to 1."""
        size = images.shape[2:]
        x = torch.cat([images - 0.5, (2 * images - 1).abs() - 0.5, self._quantiles(images)], 1)
        step = 2 ** len(_WIDTHS)
        x = F.pad(x, (0, -size[1] % step, 0, -size[0] % step), mode='replicate')
        x = F.relu(self.enter(F.pixel_unshuffle(x, 2)))
        skips = []
        for layers in self.down:
            skips.append(x)
            x = layers(x)
        for layers in self.up:
            wider = F.interpolate(x, scale_factor=2.0, mode='bilinear', align_corners=False)
            x = layers(torch.cat([skips.pop(), wider], 1))
        return 0.5 + F.pixel_shuffle(self.leave(x), 2)[..., : size[0], : size[1]]

    def _quantiles(self, images: Tensor) -> Tensor:
        """Of each block, the same for all permutations of its values, smoothly enlarged."""
        ranked = F.pixel_unshuffle(images, self.block).sort(1).values
        picked = torch.linspace(0, ranked.shape[1] - 1, _QUANTILES).round().long()
        return F.interpolate(ranked[:, picked] - 0.5, size=tuple(images.shape[2:]), mode='bilinear')


def _layers(a: int, b: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(a, b, 3, padding=1, stride=stride), nn.ReLU(), nn.Conv2d(b, b, 3, padding=1), nn.ReLU()
    )


def _unlikeness(a: Tensor, b: Tensor) -> Tensor:
    """Mean absolute error, and what is missing to an SSIM (uniform windows of 7) of 1."""
    x, y, xx, yy, xy = (F.avg_pool2d(v, 7, 1) for v in (a, b, a * a, b * b, a * b))
    both, c1, c2 = xy - x * y, 1e-4, 9e-4
    ssim = (2 * x * y + c1) * (2 * both + c2) / ((x * x + y * y + c1) * (xx - x * x + yy - y * y + c2))
    return (a - b).abs().mean() + _SSIM * (1 - ssim.mean())


def _cropped(photos: Images, block: int, rng: np.random.Generator) -> Images:
    """A batch of crops of whole blocks; all of photos that are small."""
    count, high, wide, _ = photos.shape
    numbers = rng.integers(0, count, _BATCH)
    share = min(1.0, (_PIXELS / (high * wide)) ** 0.5)
    size = [max(1, round(side * share / block)) * block for side in (high, wide)]
    top, left = (int(rng.integers(0, (side - part) // block + 1)) * block for side, part in zip((high, wide), size))
    return photos[numbers, top : top + size[0], left : left + size[1]]


def _as_tensor(images: Images) -> Tensor:
    """Bytes (N, H, W, 3) as floats (N, 3, H, W) from 0 to 1."""
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).float() / 255
