"""Reading a config and building its plain model, for the commands."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
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
    for path, part in dicts_in(cfg.model):
        found += [part.get('pretrained'), part.get('checkpoint') if 'init_cfg' in path.split('.') else None]
    return list(dict.fromkeys(name for name in found if isinstance(name, str) and name))


def dicts_in(value: Any, path: str = '') -> Iterator[tuple[str, Any]]:
    """All dicts in a part of a config, each with the path that ``--cfg-options`` knows it by."""
    if isinstance(value, dict):
        yield path, value
        pairs: Any = list(value.items())
    else:
        pairs = enumerate(value) if isinstance(value, (list, tuple)) else ()
    for name, item in pairs:
        yield from dicts_in(item, f'{path}.{name}'.lstrip('.'))


def type_of(step: Any) -> str:
    """The name of the class of a pipeline's step, without its scope; configs give a name or the class itself."""
    kind = step.get('type') if isinstance(step, Mapping) else step
    return str(getattr(kind, '__name__', kind)).rpartition('.')[2]


def pipeline_of(cfg: Config) -> list[Any]:
    """A copy of the steps of a config's test pipeline: of its test data, or ``test_pipeline``.

    Raises:
        KeysegError: it has none.
    """
    try:
        steps = innermost(cfg.test_dataloader.dataset)['pipeline']
    except (KeyError, AttributeError, TypeError):
        steps = cfg.get('test_pipeline')
    if not steps:
        raise KeysegError('this config has no test pipeline: no test_dataloader.dataset with steps to read photos by')
    return [copy.deepcopy(step) for step in steps]


def innermost(settings: Any) -> Any:
    """The data set in wrappers such as RepeatDataset; of several joined ones the first."""
    while settings.get('dataset') is not None or settings.get('datasets'):
        settings = settings['dataset'] if settings.get('dataset') is not None else settings['datasets'][0]
    return settings


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
