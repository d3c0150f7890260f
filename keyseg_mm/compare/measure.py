"""Overhead in time: a protected inference over a plain one, by pairs in turn in one process."""

from __future__ import annotations

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
from keyseg_mm.checkpoint.files import read_checkpoint
from keyseg_mm.compare.configs import encryptions
from keyseg_mm.maps.pixels import PATCH
from keyseg_mm.mm.config import read_config
from keyseg_mm.mm.registry import TRANSFORMS
from keyseg_mm.stamp import stamps_of

ROUNDS = 9
_LEAST = 0.3  # seconds of a measurement: shorter inferences are run several times in each

Run = Callable[[], object]


def main(argv: list[str]) -> int:
    """``CONFIG CHECKPOINT PLAIN_CONFIG PLAIN OUT``: time a method, in a process of its own."""
    from mmseg.apis import init_model
    from mmseg.registry import DATASETS

    config, checkpoint, plain_config, plain_checkpoint, out = argv
    init_default_scope('mmseg')
    base, cfg = read_config(plain_config), read_config(config)
    sample = DATASETS.build(base.test_dataloader.dataset)[0]  # the first test photo; inputs: (3, H, W), uint8
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    plain = init_model(copy.deepcopy(base), plain_checkpoint, device)
    protected = init_model(copy.deepcopy(cfg), checkpoint, device)
    # one memory for both: two models differ by where their weights lie, which alone can make a percent
    for mine, theirs in zip(plain.parameters(), protected.parameters()):
        mine.data = theirs.data
    encrypt = _encryption(cfg, checkpoint, sample['inputs'])
    ratios = ratios_of(_inference(plain, sample), _inference(protected, sample, encrypt))
    low, middle, high = statistics.quantiles(ratios, n=4, method='inclusive')
    size = list(sample['inputs'].shape[-2:])
    write_json(Path(out), {'median': middle, 'q1': low, 'q3': high, 'rounds': len(ratios), 'size': size})
    return 0


def ratios_of(plain: Run, protected: Run) -> list[float]:
    """Ratios of pairs in turn, after a warm-up."""

    def seconds(run: Run, repeats: int) -> float:
        start = time.perf_counter()
        for _ in range(repeats):
            run()
        return time.perf_counter() - start

    seconds(protected, 1)
    repeats = max(1, round(_LEAST / max(seconds(plain, 1), 1e-6)))
    ratios = []
    for index in range(ROUNDS):
        pair = (plain, protected) if index % 2 == 0 else (protected, plain)
        taken = {run: seconds(run, repeats) for run in pair}
        ratios.append(taken[protected] / taken[plain])
    return ratios


def _inference(model: Any, sample: Any, encrypt: Run = lambda: None) -> Run:
    """One inference, as the host's test loop makes it, and what goes before it."""

    def infer() -> None:
        encrypt()
        batch = {'inputs': [sample['inputs']], 'data_samples': [copy.copy(sample['data_samples'])]}
        with torch.no_grad():
            model.test_step(batch)
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    return infer


def _encryption(cfg: Config, checkpoint: str, inputs: torch.Tensor) -> Run:
    """The encryption of a photo by the step of a config's test pipeline; nothing where it has none."""
    spec = next(iter(encryptions(cfg).values()), None)
    if spec is None:
        return lambda: None
    step: Any = TRANSFORMS.build(dict(spec))
    image = np.ascontiguousarray(inputs.permute(1, 2, 0).numpy())
    if step.method == PATCH:
        state = read_checkpoint(checkpoint)['state_dict']
        step.follow(stamps_of(state)[''], state)
        patch = step.cipher.block
        height, width = (-(-side // patch) * patch for side in image.shape[:2])
        image = np.resize(image, (height, width, 3))  # whole blocks; what is in them does not matter for the time
    return lambda: step.transform({'img': image})
