"""The configs that a comparison writes: each inherits from another one, and holds only what is different in it."""

from __future__ import annotations

import argparse
import os
import pprint
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config, DictAction

from keyseg_mm.atomic import write_new
from keyseg_mm.errors import KeysegError
from keyseg_mm.keys.locator import refuse_secret
from keyseg_mm.mm.config import read_config, without_protection

LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
_DELETE = '_delete_'
_PACK, _LABELS = 'PackSegInputs', 'LoadAnnotations'
ENCRYPTIONS = ('keyseg_mm.EncryptImage',)

Step = dict[str, Any]
Pipeline = list[Any]


def read(path: Path, options: Mapping[str, Any] | None = None) -> Config:
    """A config with options of mmseg's ``--cfg-options`` put into it."""
    cfg = read_config(path)
    try:
        cfg.merge_from_dict(dict(options or {}))
    except Exception as error:  # the host raises whatever it likes for options that do not fit
        raise KeysegError(f'--cfg-options do not fit {path}: {type(error).__name__}: {error}') from None
    return cfg


def parse_options(texts: Sequence[str]) -> dict[str, Any]:
    """``NAME=VALUE`` texts as mmseg's tools read them after ``--cfg-options``.

    Raises:
        KeysegError: one is not of that form.
        SecretExposedError: one holds a key.
    """
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition('=')
        if not equals or not name:
            raise KeysegError(f'--cfg-options takes NAME=VALUE, not {text!r}')
        refuse_secret(value, by_shape=name.endswith('key'))
        parser = argparse.ArgumentParser(exit_on_error=False)
        parser.add_argument('--cfg-options', nargs='+', action=DictAction)
        try:
            found.update(parser.parse_args(['--cfg-options', text]).cfg_options)
        except Exception as error:  # the host's own parser raises whatever it likes
            raise KeysegError(f'--cfg-options {name}: {type(error).__name__}: {error}') from None
    return found


def write_heir(path: Path, base: Path, wanted: Config) -> None:
    """Write a small config that inherits from ``base`` and reads as ``wanted``.

    Raises:
        KeysegError: it would not read so, as for a base in the new style, which nothing can inherit from by path.
    """
    there, here = _plain(read_config(base)), _plain(wanted)
    lines = [f'_base_ = {os.path.relpath(base.resolve(), path.resolve().parent)!r}']
    for name, value in _more(there, here).items():
        lines.append(f'{name} = {pprint.pformat(value, width=110, sort_dicts=False)}')
    text = '\n'.join(lines) + '\n'
    path.parent.mkdir(parents=True, exist_ok=True)
    write_new(path, lambda file: file.write(text.encode('utf-8')), overwrite=True)
    try:
        same = _plain(read_config(path)) == here
    except KeysegError as error:
        raise KeysegError(
            f'no config can inherit from {base} ({error}); keyseg compare takes text configs, with _base_ as a path'
        ) from None
    if not same:
        raise KeysegError(f'{path}: a config that inherits from {base} does not read as it should')


def _plain(value: Any) -> Any:
    """A config as ordinary dicts, lists and values; tuples stay tuples."""
    if isinstance(value, Config):
        value = value._cfg_dict
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(item) for item in value)
    return value


def _more(there: Mapping[str, Any], here: Mapping[str, Any]) -> dict[str, Any]:
    """What has to be said beside an inherited dict for it to become another one."""
    found: dict[str, Any] = {}
    for name, value in here.items():
        old = there.get(name)
        if name in there and old == value:
            continue
        if isinstance(value, dict) and isinstance(old, dict):
            gone = set(old) - set(value)
            found[name] = {_DELETE: True, **value} if gone else _more(old, value)
        elif isinstance(value, dict) and name in there:
            found[name] = {_DELETE: True, **value}
        else:
            found[name] = value
    return found


def change_pipelines(cfg: Config, loaders: Sequence[str], change: Callable[[Pipeline], Pipeline]) -> None:
    """Change every pipeline that ends in samples for the model, in the data sets of some loaders.

    Raises:
        KeysegError: a loader has none.
    """
    for name in loaders:
        if cfg.get(name) is None:
            continue
        if not _change(cfg[name].get('dataset'), change):
            raise KeysegError(f'{name} has no pipeline with {_PACK} in it, before which images could be encrypted')


def _change(value: Any, change: Callable[[Pipeline], Pipeline]) -> int:
    changed = 0
    if isinstance(value, dict):
        for name, item in list(value.items()):
            if name == 'pipeline' and any(is_step(step, _PACK) for step in item or ()):
                value[name] = change(list(item))
                changed += 1
            else:
                changed += _change(item, change)
    elif isinstance(value, (list, tuple)):
        changed = sum(_change(item, change) for item in value)
    return changed


def is_step(step: Any, name: str) -> bool:
    """Whether a pipeline's step is of this type, by its name with or without a scope."""
    return isinstance(step, dict) and str(step.get('type')).rpartition('.')[2] == name


def before_packing(step: Step) -> Callable[[Pipeline], Pipeline]:
    """Put a step right before ``PackSegInputs``."""

    def change(pipeline: Pipeline) -> Pipeline:
        at = next(i for i, other in enumerate(pipeline) if is_step(other, _PACK))
        return [*pipeline[:at], dict(step), *pipeline[at:]]

    return change


def behind_resizing(steps: Sequence[Step], divisor: int) -> Callable[[Pipeline], Pipeline]:
    """Put steps behind all that moves pixels, and labels, which keep their size in a test, behind them.

    Images are resized to multiples of ``divisor`` first, unless the pipeline does that by itself.
    """

    def change(pipeline: Pipeline) -> Pipeline:
        last = [step for step in pipeline if is_step(step, _LABELS) or is_step(step, _PACK)]
        rest = [step for step in pipeline if step not in last]
        whole = any(is_step(s, 'ResizeToMultiple') and not s.get('size_divisor', 32) % divisor for s in rest)
        resize = [] if whole else [dict(type='ResizeToMultiple', size_divisor=divisor)]
        return [*rest, *resize, *map(dict, steps), *last]

    return change


def key_options(cfg: Config) -> list[str]:
    """The options of ``--cfg-options`` by which a test of this config is given a key."""
    if isinstance(cfg.model.get('protection'), dict):
        return ['model.protection.key']
    return [f'test_dataloader.{path}.key' for path in _encryptions(cfg.get('test_dataloader'))]


def refuse_protected(path: Path, cfg: Config) -> None:
    """Refuse a config that is no plain one.

    Raises:
        KeysegError: it protects its model or encrypts its images, or has no model.
    """
    if not isinstance(cfg.get('model'), dict):
        raise KeysegError(f'{path} has no model')
    if without_protection(cfg.model) != cfg.model or key_options(cfg):
        raise KeysegError(f'{path} is protected already; keyseg compare takes the plain config, and protects by itself')


def _encryptions(value: Any, path: str = '') -> Iterator[str]:
    if isinstance(value, dict):
        if value.get('type') in ENCRYPTIONS:
            yield path
        pairs: Any = value.items()
    else:
        pairs = enumerate(value) if isinstance(value, (list, tuple)) else ()
    for name, item in pairs:
        yield from _encryptions(item, f'{path}.{name}'.lstrip('.'))
