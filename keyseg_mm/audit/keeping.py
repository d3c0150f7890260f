"""What running attacks one by one has in common: seeds, progress bars, digests of inputs, and results that are kept."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from keyseg_mm.audit.attack import Progress
from keyseg_mm.audit.case import Photos
from keyseg_mm.files import write_new

BAR = '  {desc:<44.44} {percentage:3.0f}% |{bar:20}| {postfix}'
#: A run may exceed its seconds by this much, for what cannot be cut short, before it is flagged.
GRACE = 1.25
_REDRAW = 0.2  # seconds between two redraws of a bar


def seed_everything(seed: int) -> None:
    """Seed the generators of torch, numpy and Python: an attack may draw from any of them."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def progress_on(bar: Any) -> Progress:
    """What an attack calls, shown on a tqdm bar of a total of 1, not too often."""
    shown = [0.0]

    def show(share: float, words: str) -> None:
        now = time.monotonic()
        if bar.disable or now - shown[0] < _REDRAW:
            return
        shown[0], bar.n = now, min(1.0, max(0.0, float(share)))
        bar.set_postfix_str(words)

    return show


def finished(path: Path, digest: str) -> dict[str, Any] | None:
    """A result of an earlier run, if it is of the same inputs and not an error; damaged files are run again."""
    try:
        result = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError):
        return None
    same = isinstance(result, dict) and result.get('digest') == digest and not result.get('error')
    return result if same else None


def keep(path: Path, result: Mapping[str, Any]) -> None:
    """Write a result for :func:`finished` to find."""
    text = json.dumps(result, indent=1)
    write_new(path, lambda file: file.write(text.encode()), overwrite=True)


def feed(state: Any, value: Any) -> None:
    """Feed a value into a hash, with its structure, so that no two different ones feed the same bytes."""
    if isinstance(value, Tensor):
        flat = value.detach().cpu().contiguous()
        state.update(f'T{flat.dtype}{tuple(flat.shape)}'.encode())
        state.update(flat.reshape(-1).view(torch.uint8).numpy().tobytes() if flat.numel() else b'')
    elif isinstance(value, np.ndarray):
        state.update(f'A{value.dtype}{value.shape}'.encode() + value.tobytes())
    elif isinstance(value, Mapping):
        state.update(f'M{len(value)}'.encode())
        for name in sorted(value):
            feed(state, name)
            feed(state, value[name])
    elif isinstance(value, (tuple, list)):
        state.update(f'L{len(value)}'.encode())
        for item in value:
            feed(state, item)
    elif isinstance(value, Photos):
        feed(state, [value.images, value.labels, value.ignore_index])
    else:
        text = repr(value)
        state.update(f'R{len(text)}'.encode() + text.encode())


def plain(value: Any) -> Any:
    """A figure of a trail as JSON takes it."""
    if isinstance(value, (np.generic, Tensor)):
        return value.item() if value.size == 1 or isinstance(value, Tensor) else str(value)
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
