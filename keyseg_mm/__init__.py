"""keyseg_mm: semantic-segmentation models protected with a secret key.

Selected feature maps inside the network are encrypted with the key, in training and in testing, after Ito, MaungMaung,
Shiota and Kiya, "Access Control of Semantic Segmentation Models Using Encrypted Feature Maps", arXiv 2206.05422.
"""

from __future__ import annotations

import importlib
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = '0.1.0'

# The public API, imported on first use: `keyseg --help` must not wait for torch.
_WHERE = {
    'KeysegError': 'errors',
    'SecretKey': 'keys.key',
    'Identity': 'keys.identity',
    'Recipient': 'keys.identity',
    'locate': 'keys.locator',
    'read_key_file': 'keys.keyfile',
    'write_key_file': 'keys.keyfile',
    'Point': 'model.points',
    'Site': 'model.sites',
    'Trace': 'model.sites',
    'resolve': 'model.sites',
    'Stamp': 'stamp',
    'stamps_of': 'stamp',
    'TRANSFORMS': 'maps',
    'SCHEMES': 'locking',
    'Protection': 'runtime.protection',
    'attach': 'runtime.attach',
    'entries_at': 'runtime.attach',
    'detach': 'runtime.attach',
    'protections': 'runtime.attach',
    'unlock_model': 'runtime.attach',
    'find_leaks': 'runtime.leaks',
    'lock': 'locking',
    'plan_lock': 'locking',
    'rekey': 'locking',
    'unlock': 'locking',
    'lock_file': 'checkpoint.operations',
    'rekey_file': 'checkpoint.rekeying',
    'seal_file': 'checkpoint.operations',
    'unlock_file': 'checkpoint.operations',
    'load': 'checkpoint.models',
    'save': 'checkpoint.models',
    'Sealing': 'seal.sections',
    'bases': 'mm.compat',
}
__all__ = ['__version__', *_WHERE]

if TYPE_CHECKING:
    from keyseg_mm.checkpoint.models import load, save
    from keyseg_mm.checkpoint.operations import lock_file, seal_file, unlock_file
    from keyseg_mm.checkpoint.rekeying import rekey_file
    from keyseg_mm.errors import KeysegError
    from keyseg_mm.keys.identity import Identity, Recipient
    from keyseg_mm.keys.key import SecretKey
    from keyseg_mm.keys.keyfile import read_key_file, write_key_file
    from keyseg_mm.keys.locator import locate
    from keyseg_mm.locking import SCHEMES, lock, plan_lock, rekey, unlock
    from keyseg_mm.maps import TRANSFORMS
    from keyseg_mm.mm.compat import bases
    from keyseg_mm.model.points import Point
    from keyseg_mm.model.sites import Site, Trace, resolve
    from keyseg_mm.runtime.attach import attach, detach, entries_at, protections, unlock_model
    from keyseg_mm.runtime.leaks import find_leaks
    from keyseg_mm.runtime.protection import Protection
    from keyseg_mm.seal.sections import Sealing
    from keyseg_mm.stamp import Stamp, stamps_of


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    if not _WHERE[name].startswith(('errors', 'keys')):
        importlib.import_module(f'{__name__}.baselines')  # what stamps and arguments may name
        if 'mmseg' in sys.modules:
            importlib.import_module(f'{__name__}.mm')  # which knows how to run its models
    return getattr(importlib.import_module(f'{__name__}.{_WHERE[name]}'), name)


def __dir__() -> list[str]:
    return sorted(__all__)


# How mmengine reads files is this package's business from its import on, and mmengine may be imported later, or never.
_READER = 'mmengine.runner.checkpoint'


class _Waiting(ModuleType):
    """torch, as mmengine's loaders see it until they load: then :mod:`keyseg_mm.mm` is imported and takes over."""

    def __init__(self, module: ModuleType) -> None:
        super().__init__('torch')
        self._module = module

    def __getattr__(self, name: str) -> Any:
        if name == 'load':
            importlib.import_module(f'{__name__}.mm')
            return vars(self._module)['torch'].load
        return getattr(importlib.import_module('torch'), name)


def _wait(module: Any) -> None:
    def load_url(*args: Any, **kwargs: Any) -> Any:
        importlib.import_module(f'{__name__}.mm')
        return module.load_url(*args, **kwargs)

    module.torch, module.load_url = _Waiting(module), load_url


class _Watcher(MetaPathFinder):
    """Is asked for every module that is imported, and waits in mmengine's reader."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path) if name == _READER else None
        loader: Any = None if spec is None else spec.loader
        if loader is not None:
            run = loader.exec_module

            def run_and_wait(module: ModuleType) -> None:
                run(module)
                _wait(module)

            loader.exec_module = run_and_wait
        return spec


if _READER in sys.modules:
    _wait(sys.modules[_READER])
else:
    sys.meta_path.insert(0, _Watcher())
