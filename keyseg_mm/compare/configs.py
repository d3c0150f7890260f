"""The configs that a comparison writes: each inherits from another one, and holds only what is different in it."""

from __future__ import annotations

import argparse
import os
import pprint
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config, DictAction

from keyseg_mm.atomic import write_new
from keyseg_mm.baselines.patches import patch_of
from keyseg_mm.compare.methods import Method
from keyseg_mm.errors import KeysegError
from keyseg_mm.keys.locator import refuse_secret
from keyseg_mm.locking import plan_lock
from keyseg_mm.mm.config import build_plain_model, read_config, without_protection
from keyseg_mm.mm.keyed import Keyed

LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
_DELETE = '_delete_'
_PACK, _LABELS, _WHOLE = 'PackSegInputs', 'LoadAnnotations', 'ResizeToMultiple'
_ENCRYPTION = 'keyseg_mm.EncryptImage'

Step = dict[str, Any]


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
    for text in texts:
        name, equals, value = text.partition('=')
        if not equals or not name:
            raise KeysegError(f'--cfg-options takes NAME=VALUE, not {text!r}')
        refuse_secret(value, by_shape=name.endswith('key'))
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument('--cfg-options', nargs='*', action=DictAction)
    try:
        return dict(parser.parse_args(['--cfg-options', *texts]).cfg_options)
    except Exception as error:  # the host's own parser raises whatever it likes
        raise KeysegError(f'--cfg-options: {type(error).__name__}: {error}') from None


def write_child_config(path: Path, base: Path, wanted: Config) -> None:
    """Write a small config that inherits from ``base`` and reads as ``wanted``.

    Raises:
        KeysegError: it would not read so, as for a base in the new style, which nothing can inherit from by path.
    """
    here = wanted.to_dict()
    lines = [f'_base_ = {os.path.relpath(base.resolve(), path.resolve().parent)!r}']
    for name, value in _differences(read_config(base).to_dict(), here).items():
        lines.append(f'{name} = {pprint.pformat(value, width=110, sort_dicts=False)}')
    text = '\n'.join(lines) + '\n'
    path.parent.mkdir(parents=True, exist_ok=True)
    write_new(path, lambda file: file.write(text.encode('utf-8')), overwrite=True)
    try:
        same = read_config(path).to_dict() == here
    except KeysegError as error:
        raise KeysegError(
            f'no config can inherit from {base} ({error}); keyseg compare takes text configs, with _base_ as a path'
        ) from None
    if not same:
        raise KeysegError(f'{path}: a config that inherits from {base} does not read as it should')


def _differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> dict[str, Any]:
    """What has to be said beside an inherited dict for it to become another one."""
    found: dict[str, Any] = {}
    for name, value in here.items():
        old = there.get(name)
        if name in there and old == value:
            continue
        if isinstance(value, dict) and isinstance(old, dict) and not set(old) - set(value):
            found[name] = _differences(old, value)
        else:
            found[name] = {_DELETE: True, **value} if isinstance(value, dict) and name in there else value
    return found


def protect(cfg: Config, method: Method, key: str) -> None:
    """Turn a plain config into a method's, and find out whether it fits the model, before anything long begins.

    Args:
        cfg: is changed.
        method: the method.
        key: locator of its key.

    Raises:
        KeysegError: the method cannot be applied to this data or model.
    """
    # all methods start from the same weights
    start = {'allow_plain': True} if cfg.get('load_from') and not method.lock else {}
    guard, protection = dict[str, Any](type='keyseg_mm.GuardHook'), dict[str, Any](key=key)
    if method.protects == 'images':
        insert(cfg, LOADERS, dict(type=_ENCRYPTION, method=method.cipher, block=method.block, key=key))
        guard.update(start)
    elif method.protects == 'patches':
        patch = patch_of(build_plain_model(cfg))
        insert(cfg, LOADERS[1:], dict(type=_ENCRYPTION, method='PATCH', key=key), divisor=patch)
    elif method.protects == 'weights':
        protection.update(unlock=True)
    elif method.lock:
        plan_lock(build_plain_model(cfg), [method.points], method.transform)
        protection.update(points='checkpoint')
    elif method.points:
        protection.update(points=method.points, transform=dict(method.transform), **start)
        Keyed(cfg.model.type, protection, **cfg.model)
    if len(protection) > 1:
        cfg.model.update(of=cfg.model.type, type='keyseg_mm.Keyed', protection=protection)
    if method.protects != 'nothing':
        cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), guard]


def insert(cfg: Config, loaders: Sequence[str], step: Step, divisor: int = 0) -> None:
    """Put a step into every pipeline that ends in samples for the model, in the data sets of some loaders.

    Args:
        cfg: is changed.
        loaders: their names.
        step: goes right before ``PackSegInputs``.
        divisor: if given, it goes after all that moves pixels, and after it the labels, which keep their size in a
            test; images are resized to multiples of this first, unless the pipeline does that by itself.

    Raises:
        KeysegError: a loader has no such pipeline.
    """
    for name in loaders:
        owners = [part for _, part in _dicts(cfg.get(name)) if _has(part.get('pipeline'), _PACK)]
        if cfg.get(name) is not None and not owners:
            raise KeysegError(f'{name} has no pipeline with {_PACK} in it, before which images could be encrypted')
        for part in owners:
            part['pipeline'] = _inserted(list(part['pipeline']), step, divisor)


def _inserted(pipeline: list[Any], step: Step, divisor: int) -> list[Any]:
    late = [other for other in pipeline if _has([other], _PACK) or (divisor and _has([other], _LABELS))]
    early = [other for other in pipeline if other not in late]
    whole = not divisor or any(not s.get('size_divisor', 32) % divisor for s in early if _has([s], _WHOLE))
    resize = [] if whole else [dict(type=_WHOLE, size_divisor=divisor)]
    return [*early, *resize, dict(step), *late]


def _has(pipeline: Any, name: str) -> bool:
    """Whether a pipeline has a step of this type, by its name with or without a scope."""
    steps = pipeline if isinstance(pipeline, (list, tuple)) else ()
    return any(isinstance(step, dict) and str(step.get('type')).rpartition('.')[2] == name for step in steps)


def _dicts(value: Any, path: str = '') -> Iterator[tuple[str, Any]]:
    """All dicts in a part of a config, each with the path that ``--cfg-options`` knows it by."""
    if isinstance(value, dict):
        yield path, value
        pairs: Any = list(value.items())
    else:
        pairs = enumerate(value) if isinstance(value, (list, tuple)) else ()
    for name, item in pairs:
        yield from _dicts(item, f'{path}.{name}'.lstrip('.'))


def encryptions(cfg: Config) -> dict[str, Step]:
    """The steps of a config's test pipelines that encrypt images, by their paths in the config."""
    found = _dicts(cfg.get('test_dataloader'), 'test_dataloader')
    return {path: step for path, step in found if step.get('type') == _ENCRYPTION}


def key_options(cfg: Config) -> list[str]:
    """The options of ``--cfg-options`` by which a test of this config is given a key."""
    if isinstance(cfg.model.get('protection'), dict):
        return ['model.protection.key']
    return [f'{path}.key' for path in encryptions(cfg)]


def refuse_protected(path: Path, cfg: Config) -> None:
    """Refuse a config that is no plain one.

    Raises:
        KeysegError: it protects its model or encrypts its images, or has no model.
    """
    if not isinstance(cfg.get('model'), dict):
        raise KeysegError(f'{path} has no model')
    if without_protection(cfg.model) != cfg.model or key_options(cfg):
        raise KeysegError(f'{path} is protected already; keyseg compare takes the plain config, and protects by itself')
