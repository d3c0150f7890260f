"""Where the host reads and writes files: the doors at which seals are taken off, and put on.

Importing :mod:`keyseg_mm.mm` sets them up, once; mmengine does that as it builds a protected model.

1. What the host's loaders read, from the disk or elsewhere, is read by a strict list of names, and never by
   ``torch.load``. A seal stays on it: whoever reads a file to write another one, as the host's publishing does, writes
   a sealed one.
2. Only what is read for this process is opened, with the keys that it holds: a Runner's resume opens the optimizer and
   the EMA copy; a protected model opens its weights itself, straight into its parameters; a model that has protected
   parts only gets them opened as they are loaded; and weights that fill a part (``init_cfg``), or a model that starts,
   are the plain ones, without maps.
3. What is written sealed is written whole or not at all, as a killed run leaves it.
4. Every Runner of a protected model has a :class:`keyseg_mm.mm.hooks.GuardHook`, whatever hooks its config lists.
5. A config that came with a checkpoint as text is values and nothing else, see :mod:`keyseg_mm.mm.config_text`.
6. A secret that was typed into a config is refused before a Runner writes the config to its log.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from enum import Enum, auto
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlparse

import torch
from mmengine.config import Config
from mmengine.runner import Runner, checkpoint
from mmengine.runner import _flexible_runner as flexible
from torch import Tensor

from keyseg_mm.atomic import write_new
from keyseg_mm.checkpoint.files import check_names, name_of, read_content
from keyseg_mm.errors import LockError
from keyseg_mm.keys.held import held
from keyseg_mm.keys.locator import refuse_written
from keyseg_mm.locking import unlock_in_place
from keyseg_mm.mm.compat import HOST_NAMES
from keyseg_mm.mm.config_text import refuse_programs
from keyseg_mm.mm.counting import count_plain
from keyseg_mm.mm.hooks import GuardHook
from keyseg_mm.mm.initialising import carry_at_init, is_initialising
from keyseg_mm.mm.strangers import StrangersHook
from keyseg_mm.runtime.attach import protection_of, protections
from keyseg_mm.seal.nested import tensors_of, with_tensors
from keyseg_mm.seal.sections import (
    WEIGHTS,
    check_meta_of,
    sealed_stamp,
    unseal_checkpoint,
)
from keyseg_mm.stamp import stamps_of


class _Load(Enum):
    """What a file is being read for."""

    ANY = auto()
    RUN = auto()  # to go on with a run
    START = auto()  # to fill what has no weights yet


_load: ContextVar[_Load] = ContextVar('keyseg_mm_load', default=_Load.ANY)
_TO_MODEL, _SAVE = '_load_checkpoint_to_model', 'save_checkpoint'


def read_for_host(file: Any, map_location: Any = None, **_: Any) -> Any:
    """In place of ``torch.load`` in the host's loaders: read by a strict list, and opened where a key is at hand."""
    content = read_content(file, HOST_NAMES)
    if isinstance(content, dict):
        bare = WEIGHTS not in content
        check_names(content if bare else content[WEIGHTS], name_of(file))
        content = _opened({WEIGHTS: content} if bare else content)
        content = content[WEIGHTS] if bare else content
    if map_location is None or str(map_location) == 'cpu':
        return content
    return with_tensors(content, {name: _moved(t, map_location) for name, t in tensors_of(content).items()})


def load_url(url: str, model_dir: str | None = None, map_location: Any = None, progress: bool = True, **_: Any) -> Any:
    """In place of torch's function of this name in the host's loaders, which would run what it has fetched."""
    folder = Path(model_dir or Path(torch.hub.get_dir()) / 'checkpoints')
    path = folder / Path(urlparse(url).path).name
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), progress=progress)
    return read_for_host(path, map_location)


class _Torch(ModuleType):
    """torch, as the host's loaders see it."""

    load = staticmethod(read_for_host)

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def _read_strictly() -> None:
    host: Any = checkpoint
    host.torch, host.load_url = _Torch('torch'), load_url
    if hasattr(host, 'get_torch_safe_globals'):
        host.get_torch_safe_globals = list  # nothing is loaded by it, and its getattr serves no other thread


def _moved(tensor: Tensor, map_location: Any) -> Tensor:
    """Where torch would have put it, had it read the file."""
    if not callable(map_location):
        return tensor.to(map_location)
    storage = map_location(tensor.untyped_storage(), 'cpu')
    return tensor if storage is None else tensor.to(storage.device)


def _opened(content: dict[str, Any]) -> dict[str, Any]:
    stamp, load = sealed_stamp(content[WEIGHTS]), _Load.START if is_initialising() else _load.get()
    keys = [] if stamp is None or load is _Load.ANY else held(stamp.key_ids)
    if keys:
        content = unseal_checkpoint(keys[0], content, but=(WEIGHTS,) if load is _Load.RUN else ())
    if load is _Load.START:
        content[WEIGHTS] = _without_maps(content[WEIGHTS])
    return content


def _without_maps(weights: dict[str, Any]) -> dict[str, Any]:
    """Weights to start from: of a protected file, the plain ones.

    Raises:
        LockError: no key for them is at hand, or their maps cannot be taken off.
    """
    turned = {where: s for where, s in stamps_of(weights).items() if s.maps or s.tensors or s.seal is not None}
    if not turned:
        return weights
    ids = next(iter(turned.values())).key_ids
    keys = held(ids)
    if not keys or any(not stamp.is_carried for stamp in turned.values()):
        why = 'its stamp does not tell which weights carry its maps' if keys else 'no key of it is at hand'
        raise LockError(
            f'these weights are protected with key {" or ".join(ids)}, and {why}: a model that starts from them would '
            'start from noise; start from what `keyseg unlock` makes of them'
        )
    plain = dict(weights)
    unlock_in_place(plain, keys[0])
    return plain


@contextmanager
def _for(load: _Load) -> Iterator[None]:
    token = _load.set(load)
    try:
        yield
    finally:
        _load.reset(token)


def _during(owner: Any, name: str, load: _Load) -> None:
    """Let a function of the host say what it reads files for."""
    old = getattr(owner, name)

    @functools.wraps(old)
    def new(*args: Any, **kwargs: Any) -> Any:
        with _for(load):
            return old(*args, **kwargs)

    setattr(owner, name, new)


def _open_for_parts() -> None:
    """Open a sealed file as it is loaded into a model that is not protected as a whole, and has protected parts."""
    old = getattr(checkpoint, _TO_MODEL)

    @functools.wraps(old)
    def load(model: Any, content: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        stamp, live = sealed_stamp(content.get(WEIGHTS)), [p.key for p in protections(model) if p.key is not None]
        keys = [] if stamp is None else [key for key in live if key.id in stamp.key_ids]
        if keys:
            check_meta_of(keys[0], content)
            if protection_of(model) is None:
                weights = unseal_checkpoint(keys[0], {n: content[n] for n in (WEIGHTS, 'meta') if n in content})
                content = {**content, **weights}  # the other sections were opened as they were read, or never are
        return old(model, content, *args, **kwargs)

    _replace(_TO_MODEL, load)


def _save_whole() -> None:
    """Write a sealed checkpoint to the disk as this package writes files; the host writes straight to its name."""
    old = getattr(checkpoint, _SAVE)

    @functools.wraps(old)
    def save(content: dict[str, Any], filename: str, *args: Any, **kwargs: Any) -> None:
        is_elsewhere = '://' in filename or any(args) or any(kwargs.values())  # another backend
        if is_elsewhere or sealed_stamp(content.get(WEIGHTS)) is None:
            old(content, filename, *args, **kwargs)
            return
        Path(filename).parent.mkdir(parents=True, exist_ok=True)
        write_new(filename, lambda file: torch.save(content, file), overwrite=True)

    _replace(_SAVE, save)


def _replace(name: str, new: Any) -> None:
    """Replace a function of the host, which takes it by name into several of its modules."""
    old = getattr(checkpoint, name)
    for module_name, module in list(sys.modules.items()):
        if module_name.startswith('mmengine') and vars(module).get(name) is old:
            setattr(module, name, new)


def _guard(runner_type: Any) -> None:
    """Register a GuardHook where the model is protected and none is there: after the hooks of a config, or later."""

    def guarded(name: str) -> None:
        old = getattr(runner_type, name)

        @functools.wraps(old)
        def new(self: Any, *args: Any, **kwargs: Any) -> Any:
            found = old(self, *args, **kwargs) if name == 'register_hooks' else None
            if GuardHook.is_needed(self.model) and not any(isinstance(hook, GuardHook) for hook in self.hooks):
                self.register_hook(GuardHook())
            if GuardHook.shows_strangers(self) and not any(isinstance(hook, StrangersHook) for hook in self.hooks):
                self.register_hook(StrangersHook())
            return found if name == 'register_hooks' else old(self, *args, **kwargs)

        setattr(runner_type, name, new)

    for name in ('register_hooks', 'train', 'val', 'test', 'save_checkpoint'):
        guarded(name)


def _refuse_typed(runner_type: Any) -> None:
    """Look for secrets in a Runner's config before it is built; it logs the config before it builds the model."""
    old = runner_type.from_cfg.__func__

    @functools.wraps(old)
    def from_cfg(cls: Any, cfg: Any) -> Any:
        refuse_written(dict(cfg.items()))
        return old(cls, cfg)

    runner_type.from_cfg = classmethod(from_cfg)


def _refuse_programs() -> None:
    """A config given as text, as the host takes it out of a checkpoint, runs nothing."""
    old = Config.fromstring

    @functools.wraps(old)
    def fromstring(text: str, *args: Any, **kwargs: Any) -> Any:
        refuse_programs(text)
        return old(text, *args, **kwargs)

    Config.fromstring = staticmethod(fromstring)


def set_up() -> None:
    """Put all of it in place; once."""
    if isinstance(checkpoint.torch, _Torch):
        return
    _read_strictly()
    _during(Runner, 'load_checkpoint', _Load.RUN)
    carry_at_init()
    _during(checkpoint, '_load_checkpoint_with_prefix', _Load.START)
    _open_for_parts()
    _save_whole()
    for runner_type in (Runner, flexible.FlexibleRunner):
        _guard(runner_type)
        _refuse_typed(runner_type)
    _refuse_programs()
    count_plain()
