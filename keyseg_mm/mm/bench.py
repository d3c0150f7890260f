"""The bench on which locks of the host's models are proved, before they are written.

Models are run the way the host tests and trains them, on painted street scenes, with the same random states.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from keyseg_mm.entries import MapEntry
from keyseg_mm.errors import LockError
from keyseg_mm.locking.proof import Agreement, Outputs
from keyseg_mm.maps import Map
from keyseg_mm.maps.pixels import BlockCipher
from keyseg_mm.mm.dryrun import watch_module
from keyseg_mm.mm.inputs import SIDE, encrypted_pictures, pictures, tensors_of
from keyseg_mm.model.passes import Passes
from keyseg_mm.model.sites import Site
from keyseg_mm.runtime.encryptor import add_encryptors, encryptors_for


class HostBench:
    """Runs models of the host; a :class:`keyseg_mm.locking.proof.Bench`."""

    def run(
        self,
        model: nn.Module,
        maps: Sequence[tuple[Site, MapEntry, Map]] = (),
        cipher: BlockCipher | None = None,
        whole: bool = False,
    ) -> Outputs:
        """All floating-point outputs of a test and a training pass; see :class:`keyseg_mm.locking.proof.Bench`."""

        def watch(double: nn.Module, passes: Passes) -> Outputs:
            add_encryptors(double, encryptors_for(double, [m[0] for m in maps], [m[2] for m in maps]))
            outputs: Outputs = {}
            for name, run_pass in passes.items():
                random.seed(0)
                np.random.seed(0)
                torch.manual_seed(0)
                outputs.update((f'{name} {n}', t.detach()) for n, t in tensors_of(run_pass()))
            return outputs

        return watch_module(model, watch, image=encrypted_pictures(cipher) if whole else pictures, smallest=SIDE)

    def agreement(self, plain: Outputs, other: Outputs) -> Agreement:
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
