"""Reading a config and building its plain model, for the commands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.registry import init_default_scope
from torch import nn

from keyseg_mm.errors import KeysegError
from keyseg_mm.mm.keyed import Keyed


def read_config(path: str | Path) -> Config:
    """Read a config file of either style.

    Raises:
        KeysegError: no such file, or it is not a config; with the host's own words.
    """
    if not Path(path).is_file():
        raise KeysegError(f'{path}: no such file')
    try:
        return Config.fromfile(str(path))
    except Exception as error:  # configs are programs: anything may come out of them
        raise KeysegError(f'{path}: could not read this config: {type(error).__name__}: {error}') from None


def without_protection(model: Any) -> Any:
    """A model config with every ``Keyed`` taken off again: the config of the plain model."""

    def plain(part: ConfigDict) -> ConfigDict:
        if part.get('type') in ('keyseg_mm.Keyed', Keyed):
            part.pop('protection', None)
            part['type'] = part.pop('of')
        return part

    return rewritten(model, plain)


def rewritten(part: Any, change: Callable[[ConfigDict], ConfigDict]) -> Any:
    """A copy of a config in which every dict, the inner ones first, went through a function."""
    if isinstance(part, dict):
        return change(ConfigDict({name: rewritten(item, change) for name, item in part.items()}))
    if isinstance(part, (list, tuple)):
        return type(part)(rewritten(item, change) for item in part)
    return part


def pretrained_files(cfg: Config) -> list[str]:
    """The files of weights that a config starts from, as it names them: ``init_cfg``, ``pretrained``, ``load_from``."""
    found = [cfg.get('load_from')]

    def walk(part: Any) -> None:
        if isinstance(part, dict):
            init = part.get('init_cfg')
            found.extend([part.get('pretrained'), *(i.get('checkpoint') for i in _dicts(init))])
            part = list(part.values())
        if isinstance(part, (list, tuple)):
            for item in part:
                walk(item)

    walk(cfg.model)
    return list(dict.fromkeys(name for name in found if isinstance(name, str) and name))


def _dicts(value: Any) -> list[Any]:
    return [item for item in (value if isinstance(value, (list, tuple)) else [value]) if isinstance(item, dict)]


def build_plain_model(cfg: Config) -> nn.Module:
    """The plain model of a config, protected or not, without its weights.

    Raises:
        KeysegError: the host cannot build it.
    """
    from mmseg.registry import MODELS

    init_default_scope(cfg.get('default_scope', 'mmseg'))
    try:
        model: Any = MODELS.build(without_protection(cfg.model))
        model.cfg = cfg  # as the host's init_model does; it tells sizes that the model is for
    except Exception as error:  # the host raises whatever it likes
        raise KeysegError(f'could not build the model of this config: {type(error).__name__}: {error}') from None
    found: nn.Module = model
    return found
