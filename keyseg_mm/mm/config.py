"""Reading a config and building its plain model, for the commands."""

from __future__ import annotations

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
    if isinstance(model, dict):
        plain = ConfigDict({name: without_protection(item) for name, item in model.items()})
        if plain.get('type') in ('keyseg_mm.Keyed', Keyed):
            plain.pop('protection', None)
            plain['type'] = plain.pop('of')
        return plain
    if isinstance(model, (list, tuple)):
        return type(model)(without_protection(item) for item in model)
    return model


def build_plain_model(cfg: Config) -> nn.Module:
    """The plain model of a config, protected or not, without its weights.

    Raises:
        KeysegError: the host cannot build it.
    """
    from mmseg.registry import MODELS

    init_default_scope(cfg.get('default_scope', 'mmseg'))
    try:
        model: nn.Module = MODELS.build(without_protection(cfg.model))
    except Exception as error:  # the host raises whatever it likes
        raise KeysegError(f'could not build the model of this config: {type(error).__name__}: {error}') from None
    return model
