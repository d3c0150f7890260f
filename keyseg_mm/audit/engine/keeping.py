"""What running attacks one by one has in common: seeds, progress bars, digests of inputs, and results that are kept."""

from __future__ import annotations

import json
import random
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from keyseg_mm.audit.engine.attack import Progress
from keyseg_mm.audit.model.case import Budget, Photos

_BAR = '  {desc:<44.44} {percentage:3.0f}% |{bar:20}| {postfix}'
#: A run may exceed its seconds by this much, for what cannot be cut short, before it is flagged.
_GRACE = 1.25
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


class Found(Protocol):
    """What attacks of all kinds come up with, as far as it is told alike."""

    exhausted: bool
    notes: str
    trail: list[dict[str, Any]]


_T = TypeVar('_T', bound=Found)


def finished(path: Path, digest: str) -> dict[str, Any] | None:
    """A result of an earlier run, if it is of the same inputs and not an error; damaged files are run again."""
    try:
        result = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError):
        return None
    same = isinstance(result, dict) and result.get('digest') == digest and not result.get('error')
    return result if same else None


def attempted(
    title: str,
    seed: int,
    budget: Budget,
    bars: bool,
    run: Callable[[Progress], _T],
    judge: Callable[[_T], dict[str, Any]],
) -> dict[str, Any]:
    """Run one attack and score what it comes up with; an error becomes part of the result.

    Args:
        title: for its progress bar.
        seed: of everything that it draws.
        budget: what it may spend.
        bars: show the bar.
        run: the attack; its time alone counts.
        judge: gives the scores of what it returns.
    """
    start = time.monotonic()
    seed_everything(seed)
    with tqdm(desc=title, total=1.0, disable=not bars, leave=False, bar_format=_BAR) as bar:
        try:
            found = run(progress_on(bar))
            seconds = time.monotonic() - start
            judged = judge(found)
        except Exception as error:  # whatever an attack raises, the others are still worth running
            where = traceback.extract_tb(error.__traceback__)[-1]
            words = f'{type(error).__name__}: {error} ({Path(where.filename).name}, line {where.lineno})'
            return {'error': words, 'seconds': round(time.monotonic() - start, 2)}
    late = seconds > _GRACE * budget.seconds
    return {
        'error': None,
        'seconds': round(seconds, 2),
        'exhausted': bool(found.exhausted or late),
        'notes': str(found.notes),
        'trail': [{name: plain(value) for name, value in row.items()} for row in found.trail],
        **judged,
    }


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
