"""Files opened to the GPU in benchmarks/gpu.py: sealed ones, and locked and sealed ones, against plain ones."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import quiet
from gpu_models import KEY, TINY, by_turns, workload
from torch import nn

from keyseg_mm import Sealing, detach, load, lock_file, plan_lock, seal_file
from keyseg_mm.keys.locator import LocatedKey
from keyseg_mm.mm.keyed import protect


def files_row(row: dict[str, Any], device: str, found: dict[str, Any]) -> None:
    """From the file to the weights on the device, by all ways, and that they are the same to the bit."""
    model = workload(row['model'], device).model.eval()
    with tempfile.TemporaryDirectory() as name, quiet():
        plain, sealed, locked = (Path(name) / f'{kind}.pth' for kind in ('plain', 'sealed', 'locked'))
        torch.save({'meta': {}, 'state_dict': model.state_dict()}, plain)
        seal_file(plain, Sealing(KEY), sealed)
        lock_file(plain, model, plan_lock(model), KEY, locked)
        wanted = {name: value.clone() for name, value in model.state_dict().items()}
        found['MiB'] = plain.stat().st_size / 2**20
        files = _Files(model, device, plain, sealed, locked)
        found['bits equal'] = {}
        for way in (*files.ways(), 'keyed on the device'):
            found['bits equal'][way] = files.opens_to(way, wanted)
        found['ok'] = all(found['bits equal'].values())
        found.update(by_turns(files.ways(), device, 4.0, files.prepare, warm_up=1))


class _Files:
    """The ways from a file to a model on the device. Those that begin there stand for a Runner that resumes."""

    def __init__(self, model: nn.Module, device: str, plain: Path, sealed: Path, locked: Path) -> None:
        self._model, self._device = model, device
        self._plain, self._sealed, self._locked = plain, sealed, locked

    def ways(self) -> dict[str, Callable[[], object]]:
        return {
            'plain': self._load_plain,
            'again': self._load_plain,
            'sealed': self._load_sealed,
            'plain, on the device': self._load_plain,
            'sealed, on the device': self._load_sealed,
            'locked and opened, on the device': lambda: load(self._model, self._locked),
        }

    def prepare(self, way: str) -> None:
        """Put the model where the way begins, with other weights than it is to get; not timed."""
        detach(self._model)
        self._model.to(self._device if 'on the device' in way else 'cpu')
        with torch.no_grad():
            for parameter in self._model.parameters():
                parameter.zero_()
        if way.startswith('locked'):
            protect(self._model, LocatedKey(KEY), {'runtime': 'plain'})
        elif way.startswith('keyed'):
            protect(self._model, LocatedKey(KEY), {'points': 'checkpoint'})

    def opens_to(self, way: str, wanted: dict[str, torch.Tensor]) -> bool:
        """Whether a way ends with these weights, to the bit; a keyed model with the key's logits of them."""
        self.prepare(way)
        if way.startswith('keyed'):
            return self._runs_keyed(wanted)
        self.ways()[way]()
        return all(torch.equal(value.cpu(), wanted[name]) for name, value in self._model.state_dict().items())

    def _runs_keyed(self, wanted: dict[str, torch.Tensor]) -> bool:
        """Loaded into a keyed model that is on the device already, as a Runner does."""
        load(self._model, self._locked)
        images = torch.randn(2, 3, *TINY, generator=torch.Generator().manual_seed(0)).to(self._device)
        with torch.no_grad():
            got = self._model(images, mode='tensor')
            detach(self._model)
            self._model.load_state_dict(wanted)
            right = self._model(images, mode='tensor')
        return bool((got - right).norm() < 1e-2 * right.norm())  # cuDNN's float32 may be TensorFloat-32

    def _load_plain(self) -> None:
        content = torch.load(self._plain, 'cpu', weights_only=True)
        self._model.load_state_dict(content['state_dict'])
        self._model.to(self._device)

    def _load_sealed(self) -> None:
        load(self._model, self._sealed, KEY)
        self._model.to(self._device)
