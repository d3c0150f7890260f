"""Proving a lock before it is written: with the key the locked model is the plain one, and without it is not.

Both are run the way the host tests and trains them, on pictures of painted street scenes, with the same random states.
"""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from keyseg_mm.bind import derive_map
from keyseg_mm.errors import LockError, PointError
from keyseg_mm.keys.key import SecretKey
from keyseg_mm.locking import lock_in_place, unlock
from keyseg_mm.lockplan import LockPlan
from keyseg_mm.mac import digest
from keyseg_mm.mm.dryrun import Image, Passes, watch_module
from keyseg_mm.mm.scenes.street import make_scene
from keyseg_mm.model.sites import flat_tensors
from keyseg_mm.runtime.encryptor import FeatureEncryptor, hook_encryptors
from keyseg_mm.stamp import Plan, is_stamp
from keyseg_mm.weightplan import WeightPlan

SIDE = 128  # large enough for a picture, small enough for seconds
# Sums are reordered, which costs a few units in the last place; a wrong absorption is wrong by its own size.
LIMIT = 1e-3
LOSS_LIMIT = 1e-2  # batch norm over the few values of a small training pass magnifies rounding
NOTHING = 1e-3  # a change below it protects nothing
WEAK = 0.2  # kappa above it: the points barely change the output
WEAK_ERROR = 0.1  # the same, where there are no classes to compare

_Outputs = dict[str, Tensor]


@dataclass(frozen=True)
class Agreement:
    """How far two models agree.

    Attributes:
        error: largest relative error (of norms) of an output of the test pass.
        loss_error: largest relative error of a loss of the training pass.
        same: share of pixels of the same class; NaN where no classes are predicted.
        kappa: Cohen's kappa of the two predictions (Cohen 1960): 1 the same, 0 no more than by chance; NaN where it is
            not defined.
    """

    error: float
    loss_error: float
    same: float
    kappa: float

    @property
    def is_equal(self) -> bool:
        return self.error <= LIMIT and self.loss_error <= LOSS_LIMIT

    @property
    def is_the_same(self) -> bool:
        """Whether nothing would be protected by a change of this size."""
        return self.error <= NOTHING

    @property
    def is_close(self) -> bool:
        """Whether the output barely differs."""
        return self.error < WEAK_ERROR if math.isnan(self.kappa) else self.kappa > WEAK


@dataclass(frozen=True)
class Proof:
    """Result of :func:`prove`.

    Attributes:
        with_key: the locked model with its key, against the plain one.
        without_key: the locked model without a key, against the plain one.
        blame: points without which ``with_key`` would be equal; empty where it is.
    """

    with_key: Agreement
    without_key: Agreement
    blame: tuple[str, ...]

    @property
    def protects(self) -> bool:
        """Whether the output changes at all without the key."""
        return not self.without_key.is_the_same

    @property
    def is_weak(self) -> bool:
        """Whether the output barely changes without the key."""
        return self.without_key.is_close


def prove(model: nn.Module, state_dict: Mapping[str, Any], plan: LockPlan, key: SecretKey, salt: bytes) -> Proof:
    """Run a plain model and its locked version, with and without the key.

    Args:
        model: the plain model of the host, with any weights; it stays as it is.
        state_dict: plain weights that fit it.
        plan: what is to be locked.
        key: the secret key.
        salt: 16 bytes.
    """
    model = copy.deepcopy(model)  # state_dict may be its own
    model.load_state_dict(state_dict, strict=False)  # fitted already: only counters of batches may be missing
    plain = run(model)

    def compare(indices: Sequence[int], authorised: bool = True) -> Agreement:
        locked, encryptors = _locked(state_dict, plan, key, salt, indices)
        model.load_state_dict(locked, strict=False)
        return agreement(plain, run(model, encryptors if authorised else ()))

    everything = range(len(plan.entries))
    with_key, without_key = compare(everything), compare(everything, authorised=False)
    blame = [] if with_key.is_equal else _culprits(everything, lambda indices: compare(indices).is_equal)
    return Proof(with_key, without_key, tuple(plan.entries[i].point for i in blame))


def prove_weights(
    model: nn.Module, state_dict: Mapping[str, Any], plan: WeightPlan, key: SecretKey, salt: bytes
) -> Agreement:
    """Lock a model's weights, unlock them, and run the model as it is without the key.

    Args:
        model, state_dict, key, salt: see :func:`prove`.
        plan: which values are moved.

    Returns:
        How far the locked model agrees with the plain one. With the key it is the plain one, bit for bit.

    Raises:
        LockError: the weights did not come back bit for bit.
    """
    model = copy.deepcopy(model)
    model.load_state_dict(state_dict, strict=False)
    plain = run(model)
    locked = dict(state_dict)
    lock_in_place(locked, plan.to_plan(key.id, salt), key)
    back = unlock(locked, key)
    changed = [n for n, value in state_dict.items() if not _same_bits(value, back.get(n))]
    if changed or back.keys() != state_dict.keys():
        raise LockError(f'these weights did not come back as they were: {", ".join(changed[:5])}. Nothing was written')
    model.load_state_dict({n: value for n, value in locked.items() if not is_stamp(n)}, strict=False)
    try:
        return agreement(plain, run(model))
    except PointError:  # it does not even run
        return Agreement(math.inf, math.inf, math.nan, math.nan)


def run(model: nn.Module, encryptors: Sequence[FeatureEncryptor] = (), image: Image | None = None) -> _Outputs:
    """All floating-point outputs of a test and a training pass, by name, from fixed random states.

    Args:
        model: of the host.
        encryptors: to hook to it.
        image: see :func:`keyseg_mm.mm.dryrun.watch_module`; by default normalised pictures.
    """

    def watch(double: nn.Module, passes: Passes) -> _Outputs:
        hook_encryptors(double, encryptors)
        outputs: _Outputs = {}
        for name, run_pass in passes.items():
            random.seed(0)
            np.random.seed(0)
            torch.manual_seed(0)
            outputs.update((f'{name} {n}', t.detach()) for n, t in tensors_of(run_pass()))
        return outputs

    return watch_module(model, watch, image=image or pictures, smallest=SIDE)


def agreement(plain: _Outputs, other: _Outputs) -> Agreement:
    """Compare the outputs of two runs."""
    if plain.keys() != other.keys() or not plain:
        raise LockError('the model handed out other things in one run than in the next, and cannot be compared')
    errors = {name: _relative_error(plain[name], other[name]) for name in plain}
    test = [error for name, error in errors.items() if name.startswith('test')]
    train = [error for name, error in errors.items() if name.startswith('train')]
    maps = [n for n, t in plain.items() if n.startswith('test') and t.dim() == 3 and t.shape[0] > 1]
    same, kappa = math.nan, math.nan
    if maps:
        same, kappa = _same_pixels(plain[maps[0]].argmax(0), other[maps[0]].argmax(0))
    return Agreement(max(test, default=0.0), max(train, default=0.0), same, kappa)


def _locked(
    state_dict: Mapping[str, Any], plan: LockPlan, key: SecretKey, salt: bytes, indices: Sequence[int]
) -> tuple[dict[str, Any], list[FeatureEncryptor]]:
    """The weights locked at some of the plan's entries, without a stamp, and the encryptors that belong to them."""
    entries = tuple(plan.entries[i] for i in indices)
    tensors = dict(state_dict)
    stamp = lock_in_place(tensors, Plan(key.id, salt, entries), key)
    del tensors[stamp.stamp_name]
    derive = lambda entry: derive_map(key, salt, entry)  # noqa: E731
    return tensors, [FeatureEncryptor(plan.sites[i], plan.entries[i], derive) for i in indices]


def _culprits(indices: Sequence[int], is_right: Callable[[Sequence[int]], bool]) -> list[int]:
    """Which of the indices are wrong, by halving: each run clears or suspects all of its part at once."""
    if not indices or is_right(indices):
        return []
    if len(indices) == 1:
        return list(indices)
    middle = len(indices) // 2
    return _culprits(indices[:middle], is_right) + _culprits(indices[middle:], is_right)


def pictures(module: nn.Module, batch: int, side: int) -> Tensor:
    """Painted street scenes, normalised as the model wants them; noise for models that do not take pictures."""
    first = next((m for m in module.modules() if isinstance(m, nn.Conv2d)), None)
    channels = first.weight.shape[1] * first.groups if first is not None else 3
    if channels != 3:
        return torch.rand(batch, channels, side, side, generator=torch.Generator().manual_seed(0))
    scenes = [make_scene(0, 'val', index)[0] for index in range(batch)]
    # in the host's order of memory: some of its heads call view()
    pixels = torch.from_numpy(np.stack(scenes)).permute(0, 3, 1, 2).float().contiguous()
    pixels = nn.functional.interpolate(pixels, (side, side), mode='bilinear')
    preprocessor: Any = getattr(module, 'data_preprocessor', None)
    mean, std = getattr(preprocessor, 'mean', None), getattr(preprocessor, 'std', None)
    if mean is None or std is None:
        return pixels / 255
    normalised: Tensor = (pixels - mean.cpu().view(-1, 1, 1)) / std.cpu().view(-1, 1, 1)
    return normalised


def tensors_of(result: Any, name: str = '') -> list[tuple[str, Tensor]]:
    """Floating-point tensors of what the host returns: losses, data samples, feature maps."""
    if isinstance(result, Mapping):
        found = [tensors_of(value, f'{name}.{key}') for key, value in result.items() if not str(key).startswith('gt_')]
    elif hasattr(result, 'all_items'):  # the host's data elements: samples, and the maps in them
        found = [tensors_of(dict(result.all_items()), name)]
    else:
        found = [[(f'{name}[{i}]', t)] for i, t in enumerate(flat_tensors(result)) if t.is_floating_point()]
        if isinstance(result, (list, tuple)) and not found:
            found = [tensors_of(value, f'{name}[{index}]') for index, value in enumerate(result)]
    return [(n, t.float()) for part in found for n, t in part]


def _same_bits(a: Any, b: Any) -> bool:
    if not isinstance(a, Tensor):
        return a is b
    return isinstance(b, Tensor) and (a.dtype, a.shape) == (b.dtype, b.shape) and digest(a) == digest(b)


def _relative_error(a: Tensor, b: Tensor) -> float:
    if a.shape != b.shape:
        return math.inf
    size = float(a.double().norm())
    gap = float((a.double() - b.double()).norm())
    if math.isfinite(size) and not math.isfinite(gap):  # with its weights in a wrong order a model may overflow
        return math.inf
    return gap / size if size else (0.0 if not gap else math.inf)


def _same_pixels(a: Tensor, b: Tensor) -> tuple[float, float]:
    same = float((a == b).float().mean())
    classes = int(max(a.max(), b.max())) + 1
    shares = [torch.bincount(x.flatten(), minlength=classes).double() / x.numel() for x in (a, b)]
    chance = float((shares[0] * shares[1]).sum())
    return same, (same - chance) / (1 - chance) if chance < 1 else math.nan
