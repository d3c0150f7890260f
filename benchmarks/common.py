"""What the benchmarks share: stock models of the host on made-up images, timing by turns, counting, memory."""

from __future__ import annotations

import gc
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from timing import quartiles
from torch import nn
from tqdm import tqdm

import keyseg_mm.mm  # noqa: F401 - the mends, before any config is read
import keyseg_mm.runtime.protection
from keyseg_mm import Protection, SecretKey, Trace, attach, entries_at, protections, resolve
from keyseg_mm.cli.host import host_tool
from keyseg_mm.deploy.graph import quiet
from keyseg_mm.maps import Map
from keyseg_mm.runtime.encryptor import add_encryptors
from keyseg_mm.runtime.gates import remove_gates

#: Transforms by points: the paper's way, and what is protected by default.
PROTECTED = {'stages': 'ChannelPermutation', 'linear': 'SignedChannelPermutation'}


def build_stock(config: str) -> tuple[nn.Module, Config]:
    """A model of a config that ships with mmsegmentation, with random weights and BN for SyncBN.

    Args:
        config: path below the host's ``configs/``.
    """
    init_default_scope('mmseg')
    with quiet():
        from mmseg.registry import MODELS

        cfg = Config.fromfile(str(host_tool('train').parents[1] / 'configs' / config))
        cfg.model.pretrained = None
        for part in ('backbone', 'image_encoder'):
            if part in cfg.model:
                cfg.model[part].init_cfg = None
        model = revert_sync_batchnorm(MODELS.build(cfg.model))
    return model, cfg


@dataclass
class Workload:
    """A segmentor and one batch for it, ready to run.

    Attributes:
        infer: the network in test mode, without gradients, to its logits (B, classes, h, w).
        train: one whole training step: forward, losses, backward, optimiser.
    """

    model: Any
    optimizer: Any
    inputs: torch.Tensor
    samples: list[Any]

    @classmethod
    def of(cls, config: str, batch: int, size: tuple[int, int]) -> Workload:
        """Build it; weights, images and labels are the same each time.

        Args:
            config: path below the host's ``configs/``.
            batch: images; at least 2, since batch norm refuses a single value for a channel in training.
            size: height and width of the images in pixels.
        """
        from mmseg.structures import SegDataSample

        torch.manual_seed(0)
        model, cfg = build_stock(config)
        with quiet():
            model.init_weights()
            optimizer = build_optim_wrapper(model, cfg.optim_wrapper)
        samples = []
        for _ in range(batch):
            sample = SegDataSample(metainfo={'img_shape': size, 'ori_shape': size, 'pad_shape': size})
            sample.gt_sem_seg = PixelData(data=torch.randint(0, model.num_classes, (1, *size)))
            samples.append(sample)
        return cls(model, optimizer, torch.randn(batch, 3, *size), samples)

    def infer(self) -> None:
        self.model.eval()
        with torch.no_grad():
            self.model(self.inputs, mode='tensor')

    def train(self) -> None:
        self.model.train()
        loss, _ = self.model.parse_losses(self.model.loss(self.inputs, self.samples))
        self.optimizer.update_params(loss)

    def protect(self, points: str) -> Protection:
        """Attach encryptors at ``linear`` or ``stages``, as :data:`PROTECTED` says, with a fresh key."""
        sites = resolve(points, self.model, Trace.of(self.model, {'test': self.infer}))
        return attach(self.model, SecretKey.generate(), sites, entries_at(sites, PROTECTED[points]))


class Switch:
    """Takes the encryptors of a protected model off, and puts the very same ones back, tables and all.

    One model plain and keyed by turns: two models would differ in where their weights lie in memory, which alone can
    make a difference of a percent.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._encryptors = [encryptor for protection in protections(model) for encryptor in protection.encryptors]

    def __call__(self, keyed: bool) -> None:
        remove_gates(self._model)
        if keyed:
            add_encryptors(self._model, self._encryptors)


def time_pairs(model: nn.Module, step: Callable[[], None], rounds: int, name: str) -> dict[str, Any]:
    """Time a step of a protected model, plain and keyed by turns.

    Returns:
        Seconds of plain and keyed (medians); median and quartiles of the ratios keyed/plain of ``wall`` and ``cpu``
        time, of like runs (``noise``), and of 1 + what the transforms themselves took of a keyed run (``own``); how
        often feature maps were encrypted.
    """
    switch = Switch(model)
    taken: list[tuple[bool, float, float, float]] = []
    before = encryptions(model)
    gc.collect()
    gc.disable()
    try:
        for index in tqdm(range(rounds), desc=name, unit='pair', leave=False):
            for keyed in (False, True) if index % 2 == 0 else (True, False):
                switch(keyed)
                with timing_transforms() as own:
                    wall, cpu = time.perf_counter(), time.process_time()
                    step()
                    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
                taken.append((keyed, wall, cpu, sum(own)))
    finally:
        gc.enable()
        switch(True)
    pairs = [sorted(taken[i : i + 2]) for i in range(0, len(taken), 2)]  # plain first
    alike = [second[1] / first[1] for first, second in zip(taken[1::2], taken[2::2])]
    return {
        'plain s': statistics.median(plain[1] for plain, _ in pairs),
        'keyed s': statistics.median(keyed[1] for _, keyed in pairs),
        'wall': quartiles([keyed[1] / plain[1] for plain, keyed in pairs]),
        'cpu': quartiles([keyed[2] / plain[2] for plain, keyed in pairs]),
        'own': quartiles([keyed[1] / (keyed[1] - keyed[3]) for _, keyed in pairs]),
        'noise': quartiles(alike or [1.0]),
        'rounds': rounds,
        'encryptions': encryptions(model) - before,
    }


@contextmanager
def timing_transforms() -> Iterator[list[float]]:
    """Collect the seconds of every call of a transform, in forward and backward passes."""
    taken: list[float] = []
    call = Map.__call__

    def timed(self: Map, x: torch.Tensor, dim: int = 1) -> torch.Tensor:
        start = time.perf_counter()
        result = call(self, x, dim)
        taken.append(time.perf_counter() - start)
        return result

    with mock.patch.object(Map, '__call__', timed):
        yield taken


def encryptions(model: nn.Module) -> int:
    """How often the encryptors of a model have worked so far."""
    return sum(encryptor.calls for protection in protections(model) for encryptor in protection.encryptors)


@contextmanager
def counting() -> Iterator[Counter[str]]:
    """Count what must not happen in the hot path: tables derived, inverted, or made into tensors on a device."""
    counts: Counter[str] = Counter(derived=0, inverted=0, placed=0)
    derive, inverse, place = keyseg_mm.runtime.protection.derive_map, Map.inverse, Map.placed

    def count_derive(*args: Any) -> Map:
        counts['derived'] += 1
        return derive(*args)

    def count_inverse(self: Map) -> Map:
        counts['inverted'] += self._inverse is None
        return inverse(self)

    def count_place(self: Map, *args: Any) -> tuple[torch.Tensor, ...]:
        counts['placed'] += args not in self._placed
        return place(self, *args)

    with (
        mock.patch.object(keyseg_mm.runtime.protection, 'derive_map', count_derive),
        mock.patch.object(Map, 'inverse', count_inverse),
        mock.patch.object(Map, 'placed', count_place),
    ):
        yield counts
