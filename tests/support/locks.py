"""Locks built to fall: a tiny CNN trained for seconds on synthetic pictures, and cases made from it."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from keyseg_mm.audit.engine.attack import Budget
from keyseg_mm.audit.model.attack import ATTACKS, Attempt, Case, LabelledPhotos
from keyseg_mm.audit.model.attacks.points import AttackedPoint, array_of
from keyseg_mm.audit.model.forward import logits
from keyseg_mm.maps import normal_form
from keyseg_mm.model.sites import Trace
from keyseg_mm.stamp import MapEntry, Stamp
from tests.support.grants import grants

CLASSES, SIDE = 5, 32
# no symmetry among red, green and blue, or no statistics could tell them apart
COLOURS = torch.tensor([[1.5, 0, 0.2], [-0.5, 0.9, 0], [0, -0.4, 2.0], [0.8, 1.4, 0.3], [-1.0, -0.3, 0.7]])


class TinyNet(nn.Module):
    """Three convolutions with batch norm and a classifier; BN after every locked layer but the last."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.a_bn = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.b, self.b_bn = nn.Conv2d(16, 32, 1, bias=False), nn.BatchNorm2d(32)
        self.c, self.c_bn = nn.Conv2d(32, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.head = nn.Conv2d(16, CLASSES, 1)

    def forward(self, x):
        x = F.relu(self.a_bn(self.a(x)))
        x = F.relu(self.b_bn(self.b(x)))
        return self.head(F.relu(self.c_bn(self.c(x))))


def pictures(count, seed):
    """Coloured blocks with texture and uneven light; the label is the colour's index, a few pixels are not labelled."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (count, 4, 4), generator=draw)
    labels = labels.repeat_interleave(SIDE // 4, 1).repeat_interleave(SIDE // 4, 2)
    light = 1 + 0.5 * torch.randn(count, 1, 1, 1, generator=draw)
    images = COLOURS[labels].permute(0, 3, 1, 2) * light
    images = images + 0.5 * torch.randn(count, 3, SIDE, SIDE, generator=draw)
    grain = torch.randn(count, 1, SIDE, SIDE, generator=draw) * (labels % 2)[:, None]
    labels = labels.clone()
    labels[:, 0] = 255
    return LabelledPhotos(images + 0.6 * grain, labels)


@functools.cache
def trained(seed=0, steps=160):
    """Weights of a trained TinyNet."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = TinyNet()
        adam = torch.optim.AdamW(model.parameters(), 5e-3, weight_decay=0.02)
        photos = pictures(64, 100 + seed)
        for step in range(steps):
            at = torch.arange(step * 8, step * 8 + 8) % 64
            loss = F.cross_entropy(model(photos.images[at]), photos.labels[at], ignore_index=255)
            adam.zero_grad()
            loss.backward()
            adam.step()
            adam.param_groups[0]['lr'] = 5e-3 * (1 - step / steps)
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def build():
    """A fresh TinyNet with seeded weights."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return TinyNet().eval()


def make_plan(points, transform='ChannelPermutation', salt=bytes(16)):
    """A plan over TinyNet's points."""
    channels = {'in:a': 3, 'in:b': 16, 'in:c': 32, 'in:head': 16, 'out:a': 16, 'out:a_bn': 16, 'out:b': 32}
    spec = normal_form(transform)
    return Stamp('0' * 16, salt, tuple(MapEntry(p, channels[p], dict(spec)) for p in points))


def random_maps(plan, seed=7):
    """A secret for every point of a plan."""
    rng = np.random.default_rng(seed)
    return {e.point: AttackedPoint(e).random(rng) for e in plan.maps}


def lock(weights, maps):
    """W' = W T^-1 in the layers of the in: points; in the readers of out:b and out:a_bn too."""
    locked = dict(weights)
    readers = {'out:b': [], 'out:a_bn': ['b'], 'out:a': []}
    for point, secret in maps.items():
        for name in readers.get(point, [point[3:]]):
            locked[f'{name}.weight'] = secret(locked[f'{name}.weight'], 1)
    return locked


def case_of(points, maps=None, transform='ChannelPermutation', weights=None, steps=200, seconds=60.0, **granted):
    """A case of TinyNet, locked with maps (random ones by default), with grants by name, and the true maps."""
    plan = make_plan(points, transform)
    maps = random_maps(plan) if maps is None else maps
    weights = lock(trained() if weights is None else weights, maps)
    sites = sites_of(build(), plan)
    return Case(plan, weights, build, CLASSES, sites, grants=grants(**granted), budget=Budget(steps, seconds)), maps


def sites_of(model, plan):
    """What a run shows of a plan's points."""
    trace = Trace.of(model, {'test': lambda: model(torch.zeros(1, 3, SIDE, SIDE))})
    found = {str(point): site for point, site in trace.sites.items()}
    return {entry.point: found[entry.point] for entry in plan.maps}


def right(guess, truth):
    """Share of the channels that a guess has right."""
    a, b = array_of(guess), array_of(truth)
    return float((np.abs(a - b).max(1) < 0.02).mean())


def accuracy(model, seed=999):
    """Share of pixels right on fresh pictures."""
    photos = pictures(16, seed)
    with torch.no_grad():
        guess = logits(model, photos.images).argmax(1)
    valid = photos.labels != 255
    return float((guess == photos.labels)[valid].float().mean())


def attack(name, case):
    """Run an attack, which must report its progress and leave global generators and the case as they are."""
    shares = []
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    weights = {k: v.clone() for k, v in case.weights.items()}
    attempt = ATTACKS[name]().run(case, lambda share, words: shares.append(share))
    assert isinstance(attempt, Attempt)
    assert shares and all(0 <= s <= 1.0001 for s in shares)
    assert torch.equal(torch.get_rng_state(), torch_state) and (np.random.get_state()[1] == numpy_state).all()
    assert all(torch.equal(case.weights[k], v) for k, v in weights.items())
    return attempt


def attack_quietly(name, case):
    """Run an attack that may be over before it has anything to report."""
    return ATTACKS[name]().run(case, lambda share, words: None)


__all__ = [
    'accuracy',
    'attack',
    'attack_quietly',
    'build',
    'case_of',
    'lock',
    'make_plan',
    'pictures',
    'random_maps',
    'replace',
    'right',
    'sites_of',
]
