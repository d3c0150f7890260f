"""The configs of a comparison: a plain one with mmseg's options put into it, and what each method makes of it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config, DictAction

from keyseg_mm.baselines.patches import patch_of
from keyseg_mm.compare.methods import Method
from keyseg_mm.errors import KeysegError
from keyseg_mm.keys.locator import refuse_secret
from keyseg_mm.locking import plan_lock
from keyseg_mm.mm.config import build_plain_model, dicts_in, read_config, type_of, without_protection
from keyseg_mm.mm.keyed import Keyed

LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
_PACK, _LABELS, _WHOLE = 'PackSegInputs', 'LoadAnnotations', 'ResizeToMultiple'
_ENCRYPTION = 'keyseg_mm.EncryptImage'

Step = dict[str, Any]


def read_plain(path: Path, options: Sequence[str] = ()) -> Config:
    """A plain config, with ``NAME=VALUE`` options put into it as mmseg's tools do after ``--cfg-options``.

    Raises:
        KeysegError: it cannot be read, has no model or is protected already, or the options do not fit.
        SecretExposedError: an option holds a key.
    """
    for text in options:
        name, equals, value = text.partition('=')
        if not equals or not name:
            raise KeysegError(f'--cfg-options takes NAME=VALUE, not {text!r}')
        refuse_secret(value, by_shape=name.endswith('key'))
    cfg = read_config(path)
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument('--cfg-options', nargs='*', action=DictAction)
    try:
        cfg.merge_from_dict(parser.parse_args(['--cfg-options', *options]).cfg_options)
    except Exception as error:  # the host raises whatever it likes for options that do not fit
        raise KeysegError(f'--cfg-options do not fit {path}: {type(error).__name__}: {error}') from None
    if not isinstance(cfg.get('model'), dict):
        raise KeysegError(f'{path} has no model')
    if without_protection(cfg.model) != cfg.model or key_options(cfg):
        raise KeysegError(f'{path} is protected already; keyseg compare takes the plain config, and protects by itself')
    return cfg


def protect(cfg: Config, method: Method, key: str) -> None:
    """Turn a plain config into a method's, with a locator of its key, and find out whether it fits the model.

    Raises:
        KeysegError: the method cannot be applied to this data or model.
    """
    # files in the open, signed: what a method itself keeps from whoever has the weights, and not what a seal does
    guard, protection = dict[str, Any](type='keyseg_mm.GuardHook'), dict[str, Any](key=key, seal=False)
    if method.protects == 'images':
        insert(cfg, LOADERS, dict(type=_ENCRYPTION, method=method.cipher, block=method.block, key=key))
        guard.update({'allow_plain': True} if cfg.get('load_from') else {})
    elif method.protects == 'patches':
        patch = patch_of(build_plain_model(cfg))
        insert(cfg, LOADERS[1:], dict(type=_ENCRYPTION, method='PATCH', key=key), divisor=patch)
    elif method.protects == 'weights':
        protection.update(runtime='plain')
    elif method.lock:
        plan_lock(build_plain_model(cfg), [method.points], method.transform)
        protection.update(points='checkpoint')
    elif method.points:
        protection.update(points=method.points, transform=dict(method.transform))
        if cfg.get('load_from'):  # all methods start from the same weights
            cfg.model.init_cfg, cfg.load_from = dict(type='Pretrained', checkpoint=cfg.load_from), None
        Keyed(cfg.model.type, protection, **cfg.model)
    if len(protection) > 2:
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
        owners = [part for _, part in dicts_in(cfg.get(name)) if _PACK in map(type_of, part.get('pipeline') or ())]
        if cfg.get(name) is not None and not owners:
            raise KeysegError(f'{name} has no pipeline with {_PACK} in it, before which images could be encrypted')
        for part in owners:
            steps = list(part['pipeline'])
            late = [other for other in steps if type_of(other) in ((_PACK, _LABELS) if divisor else (_PACK,))]
            early = [other for other in steps if other not in late]
            whole = [other.get('size_divisor', 32) for other in early if type_of(other) == _WHOLE]
            if divisor and all(size % divisor for size in whole):
                early.append(dict(type=_WHOLE, size_divisor=divisor))
            part['pipeline'] = [*early, dict(step), *late]


def key_options(cfg: Config) -> list[str]:
    """The options of ``--cfg-options`` by which a test of this config is given a key."""
    if isinstance(cfg.model.get('protection'), dict):
        return ['model.protection.key']
    found = dicts_in(cfg.get('test_dataloader'), 'test_dataloader')
    return [f'{path}.key' for path, step in found if step.get('type') == _ENCRYPTION]
