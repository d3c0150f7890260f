"""A small network from encrypted images to plain ones, and its training."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from keyseg_mm.audit.attack import Progress
from keyseg_mm.audit.case import Clock
from keyseg_mm.audit.restoring.attacks._order import MOST_VALUES
from keyseg_mm.audit.restoring.attacks._statistics import as_bytes
from keyseg_mm.audit.restoring.scheme import COLOURS, Images, Scheme

_WIDTHS = (24, 48, 64, 64)  # channels at half the size, a quarter, and so on
_QUANTILES = 9  # of a block's values, its least and largest included
_BATCH = 4
_PIXELS = 112 * 112  # of a crop, at most: a step's cost is then the same for images of all sizes
_RATE = 2e-3
_SSIM = 0.3  # weight of what is not SSIM in the loss, beside the mean absolute error
#: Gives a batch of plain and of encrypted images.
Draw = Callable[[np.random.Generator], tuple[Images, Images]]


def as_tensor(images: Images) -> Tensor:
    """Bytes (N, H, W, 3) as floats (N, 3, H, W) from 0 to 1."""
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).float() / 255


def as_images(tensor: Tensor) -> Images:
    """Undo :func:`as_tensor`; other values are cut off."""
    return as_bytes(255 * tensor.detach().permute(0, 2, 3, 1).numpy())


def block_values(images: Tensor, block: int) -> Tensor:
    """The values of each block, (N, 3 M M, H / M, W / M)."""
    return F.pixel_unshuffle(images, block)


class InverseNetwork(nn.Module):
    """From an encrypted image to a plain one, as a small U-Net.

    It sees the values, the folded values, and of each block what no permutation changes: the quantiles of its values.
    With ``keyed``, and blocks that are not too large, it also sees them through a learnt linear map of their values,
    which can undo one key's cipher.

    Args:
        scheme: how images are encrypted.
        keyed: whether all images it will ever see are of one key.
    """

    def __init__(self, scheme: Scheme, keyed: bool) -> None:
        super().__init__()
        self.block = scheme.block
        keyed = keyed and scheme.values <= MOST_VALUES
        self.undo = nn.Conv2d(scheme.values, scheme.values, 1) if keyed else None
        inputs = 2 * COLOURS + _QUANTILES + COLOURS * keyed
        self.enter = nn.Conv2d(4 * inputs, _WIDTHS[0], 3, padding=1)
        pairs = list(zip(_WIDTHS, _WIDTHS[1:]))
        self.down = nn.ModuleList(_layers(a, b, stride=2) for a, b in pairs)
        self.up = nn.ModuleList(_layers(a + b, a) for a, b in reversed(pairs))
        self.leave = nn.Conv2d(_WIDTHS[0], 4 * COLOURS, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """Encrypted (N, 3, H, W) to plain, both about 0 to 1."""
        size = images.shape[2:]
        seen = [images - 0.5, (2 * images - 1).abs() - 0.5, self._quantiles(images)]
        if self.undo is not None:
            seen.append(F.pixel_shuffle(self.undo(block_values(images - 0.5, self.block)), self.block))
        x = torch.cat(seen, 1)
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
        ranked = block_values(images, self.block).sort(1).values
        picked = torch.linspace(0, ranked.shape[1] - 1, _QUANTILES).round().long()
        small = ranked[:, picked] - 0.5
        return F.interpolate(small, size=tuple(images.shape[2:]), mode='bilinear', align_corners=False)


def _layers(a: int, b: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(a, b, 3, padding=1, stride=stride), nn.ReLU(), nn.Conv2d(b, b, 3, padding=1), nn.ReLU()
    )


def unlikeness(a: Tensor, b: Tensor) -> Tensor:
    """Mean absolute error, and what is missing to an SSIM (uniform windows of 7) of 1."""
    x, y = (F.avg_pool2d(v, 7, 1) for v in (a, b))
    xx, yy, xy = (F.avg_pool2d(v, 7, 1) for v in (a * a, b * b, a * b))
    both, c1, c2 = xy - x * y, 1e-4, 9e-4
    ssim = (2 * x * y + c1) * (2 * both + c2) / ((x * x + y * y + c1) * (xx - x * x + yy - y * y + c2))
    return (a - b).abs().mean() + _SSIM * (1 - ssim.mean())


def trained(scheme: Scheme, keyed: bool, draw: Draw, clock: Clock, seed: int, progress: Progress) -> InverseNetwork:
    """A network trained on what ``draw`` gives until the budget ends, its rate falling to zero by then."""
    torch.manual_seed(seed)
    net, rng = InverseNetwork(scheme, keyed), np.random.default_rng(seed)
    optimizer = torch.optim.Adam(net.parameters(), lr=_RATE)
    while clock.tick():
        for group in optimizer.param_groups:
            group['lr'] = _RATE * (1 - 0.99 * clock.share)
        plain, encrypted = draw(rng)
        loss = unlikeness(net(as_tensor(encrypted)), as_tensor(plain))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        progress(clock.share, f'step {clock.steps}, loss {loss.item():.3f}')
    return net.eval()


@torch.no_grad()
def inverted(net: InverseNetwork, encrypted: Images) -> Images:
    """What the network makes of encrypted images."""
    return np.concatenate([as_images(net(as_tensor(image[None]))) for image in encrypted])


def cropped(images: tuple[Images, ...], block: int, rng: np.random.Generator) -> tuple[Images, ...]:
    """A batch of the same crops of whole blocks of images that belong together; all of an image that is small."""
    count, high, wide, _ = images[0].shape
    numbers = rng.integers(0, count, _BATCH)
    share = min(1.0, (_PIXELS / (high * wide)) ** 0.5)
    size = [max(1, round(side * share / block)) * block for side in (high, wide)]
    top, left = (int(rng.integers(0, (side - part) // block + 1)) * block for side, part in zip((high, wide), size))
    return tuple(x[numbers, top : top + size[0], left : left + size[1]] for x in images)
