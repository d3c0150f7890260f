"""The process that runs the rows of benchmarks/gpu.py: read from stdin, answered on stdout, a line of JSON each.

It first tells what machine it is on. A row that fails is an answer too. Where the GPU has had enough after a failure,
it says that it is broken, to be started again.
"""

from __future__ import annotations

import gc
import json
import math
import os
import platform
import sys
import traceback
from importlib import metadata
from pathlib import Path
from typing import Any


def versions(device: str) -> dict[str, Any]:
    """What the figures hang on."""
    import torch

    about: dict[str, Any] = {'device': device, 'card': 'none, CPU', 'torch': torch.__version__}
    about |= {'python': platform.python_version(), 'cores': os.cpu_count(), 'cuda': torch.version.cuda}
    for name in ('onedl-mmsegmentation', 'mmsegmentation', 'triton'):
        try:
            about[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    if device == 'cuda':
        card = torch.cuda.get_device_properties(0)
        about |= {
            'card': card.name,
            'GiB': round(card.total_memory / 2**30, 1),
            'cudnn': torch.backends.cudnn.version(),
        }
    return about


def clean(value: Any) -> Any:
    """A value as JSON has it: no NaN, no infinity, nothing of torch."""
    if isinstance(value, dict):
        return {str(k): clean(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [clean(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def told(error: BaseException) -> str:
    """An error in a few lines: its first ones, and where it came from."""
    where = traceback.extract_tb(error.__traceback__)[-3:]
    text = ' '.join(f'{type(error).__name__}: {error}'.split())
    return f'{text[:1500]} ({"; ".join(f"{Path(f.filename).name}:{f.lineno}" for f in where)})'


def tidy(device: str) -> bool:
    """Free what a row left; False if the GPU does not answer any more."""
    import torch

    gc.collect()
    try:
        torch._dynamo.reset()
        if device == 'cuda':
            torch.cuda.empty_cache()
            assert float(torch.ones(8, device=device).sum()) == 8
            torch.cuda.synchronize()
    except Exception as error:  # after an illegal access every call fails, each in its own way
        print(told(error), file=sys.stderr, flush=True)
        return False
    return True


def main() -> None:
    """Answer until stdin ends."""
    answers = os.fdopen(os.dup(1), 'w', buffering=1)
    os.dup2(2, 1)  # whatever the host prints is no answer

    def answer(value: dict[str, Any]) -> None:
        answers.write(json.dumps(clean(value)) + '\n')

    try:
        import torch
        import torch._dynamo
        from gpu_rows import run_row

        device = 'cuda' if torch.cuda.is_available() and '--cpu' not in sys.argv else 'cpu'
        if device == 'cpu':
            torch.set_num_threads(1)  # on a busy machine threads wait for each other for minutes
        answer(versions(device))
    except Exception as error:  # whatever is missing here, and however it shows
        answer({'error': told(error), 'broken': True})
        return
    for line in sys.stdin:
        found: dict[str, Any] = {}
        try:
            run_row(json.loads(line), device, found)
        except Exception as error:  # a row may fail of anything: memory, the compiler, the host
            found['error'] = told(error)
            traceback.clear_frames(error.__traceback__)  # which hold the tensors
            print(f'{line.strip()}: {found["error"]}', file=sys.stderr, flush=True)
        if not tidy(device):
            answer({**found, 'error': found.get('error', 'the GPU does not answer any more'), 'broken': True})
            os._exit(1)
        answer(found)


if __name__ == '__main__':
    main()
