"""Protecting a config from outside: what has to be put into it, so that it runs with a key."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from mmengine.config import Config, ConfigDict

from keyseg_mm.errors import KeysegError
from keyseg_mm.mm.config import dicts_in, rewritten, without_protection
from keyseg_mm.mm.keyed import Keyed
from keyseg_mm.mm.neck import KeyedNeck
from keyseg_mm.mm.pipeline import EncryptImage

_KEYED = ('keyseg_mm.Keyed', Keyed, 'keyseg_mm.KeyedNeck', KeyedNeck)
_STEPS = ('keyseg_mm.EncryptImage', EncryptImage)


def is_keyed(cfg: Config) -> bool:
    """Whether a config protects its model, or a part of it."""
    return bool(_keyed_parts(cfg))


def options_for(
    cfg: Config, key: str, points: Sequence[str] | None = None, runtime: str | None = None, opens: bool = False
) -> dict[str, Any]:
    """What to merge into a config so that it runs with a key, by the names that ``--cfg-options`` knows.

    Args:
        cfg: plain, or protected, or with encrypted images.
        key: its locator.
        points: what to encrypt; None for what the config says, or the default.
        runtime: see :func:`keyseg_mm.mm.keyed.Keyed`.
        opens: whether a plain config is to follow the checkpoint that it loads, opened, unless told otherwise.
    """
    given = {'key': key, 'points': list(points) if points else None, 'runtime': runtime}
    protection = {name: value for name, value in given.items() if value is not None}
    found = {f'{path}.protection.{name}': value for path in _keyed_parts(cfg) for name, value in protection.items()}
    found.update({f'{path}.key': key for path, part in dicts_in(cfg._cfg_dict) if part.get('type') in _STEPS})
    if found:
        return found
    if opens:
        protection.setdefault('runtime', 'keyed' if points else 'plain')
    return {'model.type': 'keyseg_mm.Keyed', 'model.of': _named(cfg.model.type), 'model.protection': protection}


def check_keyed_options(cfg: Config, name: str) -> None:
    """Make sure that whatever takes ``protection`` in a config can take it.

    Raises:
        KeysegError: a plain model does not.
    """
    for path, part in dicts_in(cfg.get('model'), 'model'):  # a base may name one beside it
        if 'protection' in part and part.get('type') not in _KEYED:
            raise KeysegError(
                f'{name} is a plain config: its {path} ({part.get("type")}) takes no protection. Give --key LOC alone, '
                f"which wraps the model, or write type='keyseg_mm.Keyed', of={part.get('type')!r} into the config"
            )


def opened_config(cfg: Config, key: str, checkpoint: str) -> str:
    """The text of a config, whole, that runs a locked checkpoint opened, with its key."""
    new, model = copy.deepcopy(cfg), rewritten(without_protection(cfg.model), _in_words)
    model.of, model.type = model.type, 'keyseg_mm.Keyed'
    model.protection = {'key': key, 'runtime': 'plain'}
    new.model, new.load_from = model, checkpoint
    return str(new.pretty_text)


def _in_words(part: ConfigDict) -> ConfigDict:
    """A part of a config without classes, which have no text."""
    return ConfigDict({name: _named(item) if isinstance(item, type) else item for name, item in part.items()})


def _named(kind: Any) -> str:
    """The type of a model as text: its registered name, or of a class of a config in Python where it is found."""
    return kind if isinstance(kind, str) else f'{kind.__module__}.{kind.__qualname__}'


def _keyed_parts(cfg: Config) -> list[str]:
    return [path for path, part in dicts_in(cfg.get('model'), 'model') if part.get('type') in _KEYED]
