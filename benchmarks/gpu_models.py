"""What the rows of benchmarks/gpu.py are made of: models of the host on a device, and the clock."""

from __future__ import annotations

import copy
import functools
import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from common import PROTECTED, Workload, quartiles, quiet
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from keyseg_mm import SecretKey, attach, detach, entries_at, lock, resolve
from keyseg_mm.keys.locator import LocatedKey
from keyseg_mm.mm.dryrun import trace_module
from keyseg_mm.mm.keyed import protect
from keyseg_mm.runtime.encryptor import Encryptor, add_encryptors
from keyseg_mm.runtime.gates import remove_gates

CONFIGS = {
    'FCN-R50-D8': ('fcn/fcn_r50-d8_4xb2-40k_cityscapes-512x1024.py', (512, 1024)),
    'DeepLabV3+-R50': ('deeplabv3plus/deeplabv3plus_r50-d8_4xb2-40k_cityscapes-512x1024.py', (512, 1024)),
    'SegFormer-B0': ('segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py', (512, 512)),
}
TINY, BATCH = (64, 64), 2
SAMPLE = 0.04  # seconds that a sample takes at least: several steps in a row, for small models
SCALE = 128.0  # of losses in half precision; not the usual 65536: no step is to be left out because it overflowed
KEY = SecretKey.generate()


@functools.cache
def _built(name: str, tiny: bool) -> Workload:
    config, size = CONFIGS[name]
    with quiet():
        work = Workload.of(config, BATCH, TINY if tiny else size)
    for module in work.model.modules():
        if isinstance(module, _BatchNorm):  # so that no norm is the identity
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 2)
    for group in work.optimizer.optimizer.param_groups:
        group['lr'] = 0.0  # a step costs the same, and the weights stay: every way computes with the same ones
    return work


def workload(name: str, device: str) -> Workload:
    """A model with its own optimiser on one batch of its config's crop size, tiny on a CPU; still on the CPU."""
    return copy.deepcopy(_built(name, device == 'cpu'))


def to_device(work: Workload, device: str) -> Workload:
    """Move it, as ``Runner`` and ``init_model`` move models."""
    work.model.to(device)
    work.inputs = work.inputs.to(device)
    work.samples = [sample.to(device) for sample in work.samples]
    return work


def keyed_at(model: nn.Module, points: str) -> list[Encryptor]:
    """Attach encryptors to a plain model; what was attached."""
    with quiet():
        sites = resolve(points, model, trace_module(model))
        return attach(model, KEY, sites, entries_at(sites, PROTECTED[points])).encryptors


def opened(work: Workload) -> Workload:
    """A copy that was locked, and opened in memory as it was loaded: ``runtime='plain'``."""
    twin = copy.deepcopy(work)
    with quiet():
        locked = lock(work.model.state_dict(), work.model, KEY)
        protect(twin.model, LocatedKey(KEY), {'runtime': 'plain'})
        twin.model.load_state_dict(locked)
    return twin


def without_chance(model: nn.Module) -> None:
    """Take dropout and dropped paths out of a model, which would differ from run to run."""
    for module in model.modules():
        for name in ('p', 'drop_prob'):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


@dataclass
class Stepper:
    """Training steps and inference of a workload on a device, in float32 or under autocast.

    Autocast is to float16 with a scaled loss on a GPU, as the host's AmpOptimWrapper does it, and to bfloat16 on a CPU.
    """

    work: Workload
    device: str
    autocast: bool = False
    _scaler: Any = field(init=False)

    def __post_init__(self) -> None:
        scaled = self.autocast and self.device == 'cuda'
        self._scaler = torch.amp.GradScaler(self.device, init_scale=SCALE, enabled=scaled)

    def casting(self) -> Any:
        dtype = torch.float16 if self.device == 'cuda' else torch.bfloat16
        return torch.autocast(self.device, dtype=dtype, enabled=self.autocast)

    @property
    def overflowed(self) -> bool:
        """Whether steps were left out because their gradients did not fit into half precision."""
        return self._scaler.is_enabled() and self._scaler.get_scale() < SCALE

    def logits(self) -> Tensor:
        self.work.model.eval()
        with torch.no_grad(), self.casting():
            return self.work.model(self.work.inputs, mode='tensor')

    def loss(self) -> Tensor:
        model = self.work.model.train()
        with self.casting():
            return model.parse_losses(model.loss(self.work.inputs, self.work.samples))[0]

    def train(self) -> None:
        optimizer = self.work.optimizer.optimizer
        self._scaler.scale(self.loss()).backward()
        self._scaler.step(optimizer)
        self._scaler.update()
        optimizer.zero_grad()


class Ways:
    """One model plain and keyed by turns, and its opened twin: two models would differ in more than in encryption.

    Attributes:
        steppers: by way. ``again`` is plain once more: what differs there is noise.
    """

    def __init__(self, name: str, device: str, autocast: bool) -> None:
        work = workload(name, device)
        twin = Stepper(to_device(opened(work), device), device, autocast)
        one = Stepper(to_device(work, device), device, autocast)
        self.steppers = {'plain': one, 'again': one, 'stages': one, 'linear': one, 'opened': twin}
        self._model, self._encryptors = work.model, {}
        for points in PROTECTED:
            self._encryptors[points] = keyed_at(work.model, points)
            detach(work.model)

    def switch(self, way: str) -> None:
        """Make the model what the way says."""
        remove_gates(self._model)
        if way in self._encryptors:
            add_encryptors(self._model, self._encryptors[way])

    def points(self) -> dict[str, int]:
        """How many encryptors each way has."""
        return {way: len(encryptors) for way, encryptors in self._encryptors.items()}


def milliseconds(step: Callable[[], object], device: str, times: int = 1) -> float:
    """What one step takes, by the GPU's own clock where there is one."""
    if device != 'cuda':
        start = time.perf_counter()
        for _ in range(times):
            step()
        return 1e3 * (time.perf_counter() - start) / times
    torch.cuda.synchronize()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(times):
        step()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / times


def by_turns(
    steps: dict[str, Callable[[], object]],
    device: str,
    seconds: float,
    switch: Callable[[str], None] = lambda way: None,
    warm_up: int = 3,
) -> dict[str, Any]:
    """Time ways of doing the same, by turns; in every other round in the other order.

    Args:
        steps: by way; the first is the base.
        seconds: when to stop, after at least 5 rounds; a CPU does one.
        switch: makes ready for a way; its time does not count.

    Returns:
        Milliseconds by way (medians), and the quartiles of the ratios to the base of the same round.
    """
    base, times, cuda = next(iter(steps)), 1, device == 'cuda'
    for way, step in steps.items():
        switch(way)
        for _ in range(warm_up * cuda):
            step()
        if way == base and cuda:
            times = max(1, min(20, round(1e3 * SAMPLE / milliseconds(step, device))))
    taken, began = {way: [] for way in steps}, time.monotonic()
    with _no_collection():
        for index in range(200 if cuda else 1):
            if index >= 5 and time.monotonic() - began > seconds:
                break
            for way in list(steps) if index % 2 == 0 else reversed(list(steps)):
                switch(way)
                taken[way].append(milliseconds(steps[way], device, times))
    switch(base)
    ratios = {way: quartiles([a / b for a, b in zip(taken[way], taken[base])]) for way in steps if way != base}
    return {
        'ms': {way: quartiles(found)['median'] for way, found in taken.items()},
        'ratios': ratios,
        'rounds': len(taken[base]),
        'steps each': times,
    }


@contextmanager
def _no_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@contextmanager
def exact(on: bool = True) -> Iterator[None]:
    """Keep the GPU's float32 arithmetic from TensorFloat-32, which cuDNN uses unless told otherwise."""
    kept = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = kept and not on
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = kept


def gap(found: Tensor, wanted: Tensor) -> float:
    """Relative error of norms."""
    a, b = found.detach().double().cpu(), wanted.detach().double().cpu()
    return float((a - b).norm() / b.norm())
