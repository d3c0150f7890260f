"""Overhead in time: a protected inference over a plain one, by pairs in turn in one process.

One model plain and protected by turns where it can be: two models would differ in where their weights lie in memory,
which alone can make a difference of a percent.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope

from keyseg_mm.atomic import write_json
from keyseg_mm.compare.configs import ENCRYPTIONS
from keyseg_mm.errors import KeysegError
from keyseg_mm.mm.config import read_config

ROUNDS = 9
_LEAST = 0.3  # seconds of a measurement: shorter inferences are run several times in each

Run = Callable[[], object]


def main(argv: list[str]) -> int:
    """Measure one method, and write the result; for a process of its own."""
    parser = argparse.ArgumentParser()
    for name in ('config', 'checkpoint', 'plain-config', 'plain', 'timed', 'out'):
        parser.add_argument(f'--{name}', required=True)
    args = parser.parse_args(argv)
    init_default_scope('mmseg')
    found = measure(Path(args.config), args.checkpoint, Path(args.plain_config), args.plain, args.timed)
    write_json(Path(args.out), found)
    return 0


def measure(config: Path, checkpoint: str, plain_config: Path, plain: str, timed: str) -> dict[str, Any]:
    """The ratio protected over plain: median and quartiles, and the size of the image.

    Args:
        config, checkpoint: of the method.
        plain_config, plain: config and checkpoint of the plain model.
        timed: see :class:`keyseg_mm.compare.methods.Method`.
    """
    cfg, plain_cfg = read_config(config), read_config(plain_config)
    sample = first_sample(plain_cfg)
    if timed == 'images':
        model = _model(plain_cfg, plain)
        encrypt = _encryption(cfg, checkpoint, sample)
        base = _inference(model, sample)

        def protected() -> None:
            encrypt()
            base()

        ratios = ratios_of(base, protected)
    elif timed == 'encryptors':
        model = _model(cfg, checkpoint)
        ratios = ratios_of(_inference(model, sample), _inference(model, sample), switch=Switch(model))
    else:
        base, other = (_inference(_model(c, f), sample) for c, f in ((plain_cfg, plain), (cfg, checkpoint)))
        ratios = ratios_of(base, other)
    low, middle, high = statistics.quantiles(ratios, n=4, method='inclusive')
    size = list(sample['inputs'].shape[-2:])
    return {'median': middle, 'q1': low, 'q3': high, 'rounds': len(ratios), 'size': size}


class Switch:
    """Takes the encryptors of a protected model off, and puts the very same ones back, tables and all."""

    def __init__(self, model: torch.nn.Module) -> None:
        tables: list[Any] = [t for m in model.modules() for t in (m._forward_hooks, m._forward_pre_hooks)]
        self._kept = [(table, dict(table)) for table in tables if table]

    def __call__(self, on: bool) -> None:
        for table, hooks in self._kept:
            table.clear()
            if on:
                table.update(hooks)


def ratios_of(plain: Run, protected: Run, switch: Callable[[bool], None] = lambda on: None) -> list[float]:
    """Ratios of pairs in turn, after a warm-up.

    Args:
        plain, protected: what is timed.
        switch: called with whether protection is on, before each.
    """
    times = {False: plain, True: protected}

    def seconds(on: bool, repeats: int) -> float:
        switch(on)
        start = time.perf_counter()
        for _ in range(repeats):
            times[on]()
        return time.perf_counter() - start

    seconds(True, 1)
    repeats = max(1, round(_LEAST / max(seconds(False, 1), 1e-6)))
    ratios = []
    for index in range(ROUNDS):
        taken = {on: seconds(on, repeats) for on in ((False, True) if index % 2 == 0 else (True, False))}
        ratios.append(taken[True] / taken[False])
    return ratios


def first_sample(cfg: Config) -> dict[str, Any]:
    """The first test photo, as the host's loader hands it to the model: ``inputs`` (3, H, W), blue first, uint8."""
    from mmseg.registry import DATASETS

    found: dict[str, Any] = DATASETS.build(cfg.test_dataloader.dataset)[0]
    return found


def _device() -> str:
    return 'cuda' if torch.cuda.is_available() else 'cpu'


def _model(cfg: Config, checkpoint: str) -> Any:
    """A model with its weights, to be tested."""
    from mmseg.apis import init_model

    return init_model(copy.deepcopy(cfg), checkpoint, _device())


def _inference(model: Any, sample: dict[str, Any]) -> Run:
    """One inference, as the host's test loop makes it."""

    def infer() -> None:
        batch = {'inputs': [sample['inputs']], 'data_samples': [copy.copy(sample['data_samples'])]}
        with torch.no_grad():
            model.test_step(batch)
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    return infer


def _encryption(cfg: Config, checkpoint: str, sample: dict[str, Any]) -> Run:
    """One encryption of the photo, by the step of the config's test pipeline."""
    from keyseg_mm.checkpoint.files import read_checkpoint
    from keyseg_mm.maps.pixels import PATCH
    from keyseg_mm.mm.registry import TRANSFORMS
    from keyseg_mm.stamp import stamps_of

    spec = next(_steps(cfg.test_dataloader), None)
    if spec is None:
        raise KeysegError('no step of this config encrypts images')
    step: Any = TRANSFORMS.build(dict(spec))
    image = np.ascontiguousarray(sample['inputs'].permute(1, 2, 0).numpy())
    if step.method == PATCH:
        state = read_checkpoint(checkpoint)['state_dict']
        stamp = stamps_of(state).get('')
        if stamp is None or not stamp.embeddings:
            raise KeysegError(f'{checkpoint} carries no stamp of encrypted patches')
        step.follow(stamp, state)
        height, width = (-(-side // step.block) * step.block for side in image.shape[:2])
        image = np.resize(image, (height, width, 3))  # whole blocks; what is in them does not matter for the time
    return lambda: step.transform({'img': image})


def _steps(value: Any) -> Any:
    if isinstance(value, dict):
        if value.get('type') in ENCRYPTIONS:
            yield value
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _steps(item)
